//! Project tasks.
mod pins;
fn main() {
    println!("{}", pins::STABLE);
}
