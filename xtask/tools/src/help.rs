//! How wide a command line's help is.

use clap::Command;

/// The lines of the help of a command, and of those below it, that are wider than 80 columns, which every
/// terminal has.
pub fn wide_lines(command: &mut Command) -> Vec<String> {
    command.build();
    let helps = [command.render_help(), command.render_long_help()].map(|help| help.to_string());
    let lines = helps.iter().flat_map(|help| help.lines());
    let wide = lines.filter(|line| line.chars().count() > 80);
    let mut wide: Vec<_> = wide.map(|line| format!("{}: {line}", command.get_name())).collect();
    wide.extend(command.get_subcommands_mut().flat_map(wide_lines));
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_line_is_found_in_a_command_below() {
        let mut below = Command::new("a").subcommand(Command::new("b").after_help("x".repeat(81)));
        assert!(wide_lines(&mut below).iter().any(|line| line.starts_with("b: x")));
        assert_eq!(wide_lines(&mut Command::new("a").about("short")), [] as [&str; 0]);
    }
}
