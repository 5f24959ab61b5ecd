//! The report of what was measured.

use anyhow::{Context as _, Result};

use super::{
    ENDPOINTS, Row, SERVICES,
    stage::{Program, Stage},
    targets::{Dial, Load, Reach},
};
use crate::samples::{SPREAD, Samples, verdict};

/// All of it.
pub(super) struct Measured<'a> {
    pub(super) stages: &'a [Stage],
    pub(super) rows: &'a [Row],
    pub(super) rounds: usize,
}

impl Measured<'_> {
    pub(super) fn print(&self, bare: &[(Load, Samples, Samples)], others: bool) -> Result<()> {
        println!(
            "What the programs add to one connect(), in ns above the floor, which is a program that \
             only\nreturns 1. {SERVICES} Services with {ENDPOINTS} backends in each of two families. \
             Medians of {} rounds of\nthe difference within each, ± half of the median's 95 % \
             interval.\n",
            self.rounds
        );
        print!("{:<22}{:<24}", "", "");
        for dial in Dial::ALL {
            print!("{:>15}", dial.name());
        }
        println!();
        for load in Load::ALL {
            self.print_load(load)?;
        }
        self.aims()?;
        self.flatness()?;
        println!("\nThe floor itself, against nothing attached on the whole machine");
        if others {
            println!("(not so: other programs of this kind were there, so their price is in both)");
        }
        for (load, nothing, floor) in bare {
            println!("{:<22}{:>6.0}{:>12}", load.name, nothing.median(), above(floor, nothing));
        }
        self.programs()?;
        println!("\nEvery variant: ns of a whole call, and its spread over the rounds\n");
        println!("{:<60}{SPREAD}", "");
        for row in self.rows {
            let stage = &self.stages[row.stage];
            let mut title = format!("{:<22}{}", row.load.name, stage.name);
            if stage.dials().len() > 1 {
                title = format!("{title}, {}", row.dial.name());
            }
            println!("{title:<60}{}", row.ns);
        }
        Ok(())
    }

    /// A line for each stage, and behind those of baselines how the product compares.
    fn print_load(&self, load: Load) -> Result<()> {
        let floor = self.floor(load)?;
        println!("{:<22}{:<24}{:>15}", load.name, "floor, the whole call", ns(floor.median()));
        for (index, stage) in self.stages.iter().enumerate() {
            let mut cells = Dial::ALL.map(|dial| self.find(index, load, dial));
            if stage.program == Program::Floor || cells.iter().all(Option::is_none) {
                continue;
            }
            if stage.dials().len() == 1 {
                cells = [cells[0]; 3];
            }
            if stage.program == Program::Hash {
                // What is not there is not there, whoever has it.
                cells[1] = cells[0];
            }
            print!("{:<22}{:<24}", "", stage.name);
            for cell in cells {
                print!("{:>15}", cell.map_or_else(String::new, |samples| above(samples, floor)));
            }
            println!();
            if matches!(stage.program, Program::Agent { is_baseline: true, .. }) {
                print!("{:<22}{:<24}", "", "  this, times that");
                for (dial, theirs) in Dial::ALL.into_iter().zip(cells) {
                    let ours = self.many().and_then(|many| self.find(many, load, dial));
                    let more = |samples: &Samples| samples.minus(floor).median();
                    let ratio = ours.zip(theirs).map(|(ours, theirs)| more(ours) / more(theirs));
                    print!("{:>15}", ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")));
                }
                println!();
            }
        }
        println!();
        Ok(())
    }

    fn find(&self, stage: usize, load: Load, dial: Dial) -> Option<&Samples> {
        let mut rows = self.rows.iter();
        let row = rows.find(|r| r.stage == stage && r.load == load && r.dial == dial)?;
        Some(&row.ns)
    }

    fn index(&self, is_it: impl Fn(&Program) -> bool) -> Option<usize> {
        self.stages.iter().position(|stage| is_it(&stage.program))
    }

    fn floor(&self, load: Load) -> Result<&Samples> {
        let floor = self.index(|program| *program == Program::Floor);
        let floor = floor.and_then(|floor| self.find(floor, load, Dial::Outside));
        floor.context("the floor is measured with every load")
    }

    /// The product, with many Services.
    fn many(&self) -> Option<usize> {
        self.index(|program| *program == Program::Agent { services: SERVICES, is_baseline: false })
    }

    /// ns above the floor, of the product with so many Services.
    fn more(&self, services: u32, load: Load, dial: Dial) -> Result<f64> {
        let stage = self.index(|p| *p == Program::Agent { services, is_baseline: false });
        let samples = stage.and_then(|stage| self.find(stage, load, dial));
        let samples = samples.context("the product is measured with every load")?;
        Ok(samples.minus(self.floor(load)?).median())
    }

    fn aims(&self) -> Result<()> {
        println!("Aims, with {SERVICES} Services in the maps");
        for load in Load::ALL {
            let (miss, hit) = match (load.fresh, load.reach) {
                (false, Reach::Same) => (Some(30.0), 80.0),
                (false, Reach::Among(_)) => (Some(30.0), 150.0),
                (true, reach) => {
                    let bare = self.index(|program| *program == Program::Storage);
                    let bare = bare.and_then(|bare| self.find(bare, load, Dial::Outside));
                    let bare = bare.context("the bare storage is measured with every load")?;
                    let bare = bare.minus(self.floor(load)?).median();
                    (None, bare + if reach == Reach::Same { 100.0 } else { 200.0 })
                }
            };
            let aims =
                [(Dial::Outside, miss), (Dial::Pod, miss), (Dial::Hit, Some(hit))].into_iter();
            print!("{:<22}", load.name);
            for (dial, aim) in aims.filter_map(|(dial, aim)| Some((dial, aim?))) {
                let ns = self.more(SERVICES, load, dial)?;
                print!("  {} {ns:+.0}, aim +{aim:.0}: {:<3}", dial.name(), verdict(ns <= aim));
            }
            println!();
        }
        println!(
            "The maps are the same for all. \"same\" dials one address again and again; \"any of N\" \
             another\none of N each time, after each was dialled once: the more addresses, the less of \
             the maps is\nin the CPU's caches, and the more a figure needs a machine that does nothing \
             else. \"new\" has a\nnew socket for each call; its aim is the bare storage and so much more."
        );
        Ok(())
    }

    fn flatness(&self) -> Result<()> {
        println!("\nFlat in the number of Services: {SERVICES} against 1, dialling the same one");
        for load in Load::ALL.into_iter().filter(|load| load.reach == Reach::Same) {
            print!("{:<22}", load.name);
            for dial in Dial::ALL {
                let more = self.more(SERVICES, load, dial)? - self.more(1, load, dial)?;
                print!("  {} {more:+4.0}", dial.name());
            }
            println!();
        }
        println!("\nRemembering what was dialled: a hit on a new socket against one that has it");
        for fresh in Load::ALL.into_iter().filter(|load| load.fresh && load.reach == Reach::Same) {
            let again = Load::ALL.into_iter().find(|load| {
                !load.fresh
                    && load.reach == Reach::Same
                    && load.family == fresh.family
                    && load.protocol == fresh.protocol
            });
            let again = again.context("each new socket has its like")?;
            let (new, old) =
                (self.more(SERVICES, fresh, Dial::Hit)?, self.more(SERVICES, again, Dial::Hit)?);
            println!("{:<22}{:+5.0}", again.name, new - old);
        }
        Ok(())
    }

    fn programs(&self) -> Result<()> {
        println!(
            "\nThe programs: instructions, those looked at by the verifier, bytes of machine code"
        );
        for (index, stage) in self.stages.iter().enumerate() {
            let is_baseline = matches!(stage.program, Program::Agent { is_baseline: true, .. });
            if is_baseline || self.many() == Some(index) {
                println!("{}", stage.name);
                for (name, [instructions, verified, bytes]) in stage.sizes()? {
                    println!("{name:<22}{instructions:>6}{verified:>8}{bytes:>8}");
                }
            }
        }
        Ok(())
    }
}

/// What it takes more than the floor.
fn above(samples: &Samples, floor: &Samples) -> String {
    let difference = samples.minus(floor);
    format!("{:+.0} ±{:.0}", difference.median(), difference.uncertainty())
}

fn ns(value: f64) -> String {
    format!("{value:.0}")
}
