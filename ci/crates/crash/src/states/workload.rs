//! Every workload of up to three operations, each with a name by which it is run again.

use memkv_poller::Rng;

/// One operation on a tiny store. The letter is its name in a workload's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `P`, `p`: a value of one extent under key 0 or 1, in place of what is there.
    Put(u8),
    /// `M`, `m`: likewise, of three extents.
    PutParts(u8),
    /// `G`: a value under key 0 if it holds the generation it does hold.
    PutSame,
    /// `T`: a value of one extent under key 0 that lives for 50 seconds.
    PutBriefly,
    /// `K`: the calendar moves by 100 seconds, and key 0 is looked at.
    Tick,
    /// `D`, `d`: key 0 or 1 is deleted.
    Delete(u8),
    /// `W`: eight values of one extent at once.
    Burst,
    /// `E`: a value so large that others must go for it.
    Pressure,
    /// `C`: a checkpoint of every drive.
    Checkpoint,
    /// `R`: the process is killed and started again.
    Restart,
    /// `S`: the store is stopped in order and started again.
    Stop,
}

const STEPS: [(char, Step); 14] = [
    ('P', Step::Put(0)),
    ('p', Step::Put(1)),
    ('M', Step::PutParts(0)),
    ('m', Step::PutParts(1)),
    ('G', Step::PutSame),
    ('T', Step::PutBriefly),
    ('K', Step::Tick),
    ('D', Step::Delete(0)),
    ('d', Step::Delete(1)),
    ('W', Step::Burst),
    ('E', Step::Pressure),
    ('C', Step::Checkpoint),
    ('R', Step::Restart),
    ('S', Step::Stop),
];

/// What the drives hold when the workload begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Base {
    /// A few blocks on new drives.
    Fresh,
    /// A log that stands a few pages before the end of its second lap.
    Worn,
    /// A start after a cut that left one frame torn.
    Torn,
    /// A start after a cut that left a frame of two pages torn, and the one after it.
    Wide,
    /// A start after a cut that left three frames of one page torn.
    Narrow,
}

const BASES: [(&str, Base); 5] = [
    ("fresh", Base::Fresh),
    ("worn", Base::Worn),
    ("torn", Base::Torn),
    ("wide", Base::Wide),
    ("narrow", Base::Narrow),
];

/// In which order the drives complete what waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// The oldest command of all drives first.
    Oldest,
    /// The newest first.
    Newest,
    /// All that wait, before anybody learns of it.
    Together,
}

const DELIVERIES: [(&str, Delivery); 3] =
    [("oldest", Delivery::Oldest), ("newest", Delivery::Newest), ("together", Delivery::Together)];

/// A bounded workload and the machine it runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// 1 to 3.
    pub drives: usize,
    /// Where it begins.
    pub base: Base,
    /// How drives answer.
    pub delivery: Delivery,
    /// The last two operations are asked for at once.
    pub at_once: bool,
    /// One to three.
    pub steps: Vec<Step>,
}

impl Workload {
    /// Its name, which [`Workload::parse`] reads.
    pub fn name(&self) -> String {
        let base = BASES.iter().find(|b| b.1 == self.base).expect("listed").0;
        let delivery = DELIVERIES.iter().find(|d| d.1 == self.delivery).expect("listed").0;
        let mut letters = String::new();
        for (place, step) in self.steps.iter().enumerate() {
            if self.at_once && place + 2 == self.steps.len() {
                letters.push('+');
            }
            letters.push(STEPS.iter().find(|s| s.1 == *step).expect("listed").0);
        }
        format!("{}:{base}:{delivery}:{letters}", self.drives)
    }

    /// The workload of a name.
    pub fn parse(name: &str) -> Option<Workload> {
        let mut fields = name.split(':');
        let drives: usize = fields.next()?.parse().ok().filter(|d| (1..=3).contains(d))?;
        let base = fields.next()?;
        let base = BASES.iter().find(|b| b.0 == base)?.1;
        let delivery = fields.next()?;
        let delivery = DELIVERIES.iter().find(|d| d.0 == delivery)?.1;
        let letters = fields.next()?;
        let at_once = letters.contains('+');
        let step = |letter: char| STEPS.iter().find(|s| s.0 == letter).map(|s| s.1);
        let steps: Option<Vec<Step>> = letters.chars().filter(|l| *l != '+').map(step).collect();
        let steps = steps.filter(|steps| !steps.is_empty())?;
        fields.next().is_none().then_some(Workload { drives, base, delivery, at_once, steps })
    }
}

/// Workloads that meet what few others do: a whole frame of an ended log beyond the end of this
/// one, and units taken again after a removal that a cut took.
const SCOUTS: [&str; 3] = ["1:narrow:together:WPp", "1:fresh:oldest:EWE", "1:fresh:newest:EE"];

/// Every workload: first [`SCOUTS`], then those of one operation, then the longer ones in an order that is drawn
/// once and for all, so that any number of the first ones has something of everything.
pub fn all() -> Vec<Workload> {
    let mut sequences: Vec<Vec<Step>> = STEPS.iter().map(|step| vec![step.1]).collect();
    let mut shorter = sequences.clone();
    for _ in 2..=3 {
        let longer = |steps: &Vec<Step>| {
            STEPS.map(|step| steps.iter().copied().chain([step.1]).collect::<Vec<_>>())
        };
        shorter = shorter.iter().flat_map(longer).collect();
        sequences.extend(shorter.iter().cloned());
    }
    let (mut short, mut long) = (Vec::new(), Vec::new());
    for steps in sequences {
        for drives in 1..=3 {
            for (_, base) in BASES {
                for (_, delivery) in DELIVERIES {
                    let workload =
                        Workload { drives, base, delivery, at_once: false, steps: steps.clone() };
                    if steps.len() == 1 {
                        short.push(workload);
                        continue;
                    }
                    if may_meet(&steps) {
                        long.push(Workload { at_once: true, ..workload.clone() });
                    }
                    long.push(workload);
                }
            }
        }
    }
    let mut rng = Rng::seeded(0x5747);
    for list in [&mut short, &mut long] {
        for last in (1..list.len()).rev() {
            list.swap(last, rng.below(last as u64 + 1) as usize);
        }
    }
    let scout = |name: &&str| Workload::parse(name).expect("a workload's name");
    let mut all: Vec<Workload> = SCOUTS.iter().map(scout).collect();
    let known = all.clone();
    all.extend(short.into_iter().chain(long).filter(|workload| !known.contains(workload)));
    all
}

/// Whether the last two operations can be asked for at once: no start is among them.
fn may_meet(steps: &[Step]) -> bool {
    let alone = |step: &Step| matches!(step, Step::Restart | Step::Stop | Step::Tick);
    !steps[steps.len() - 2..].iter().any(alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_reads_back_from_its_name_and_no_two_share_one() {
        let all = all();
        let mut names = std::collections::HashSet::new();
        for workload in &all {
            assert_eq!(Workload::parse(&workload.name()).as_ref(), Some(workload));
            assert!(names.insert(workload.name()));
        }
        assert!(all.len() > 100_000);
        for wrong in
            ["", "4:fresh:oldest:P", "1:fresh:oldest:", "1:fresh:oldest:X", "1:new:oldest:P"]
        {
            assert_eq!(Workload::parse(wrong), None, "{wrong}");
        }
    }
}
