//! What recovery does at each place of the log, as a table.
//!
//! The scan stands at a position and expects a sequence. It looks at the page there and, unless
//! that is the expected frame, whole, at the next MiB of ring for a *later* one: a whole frame at
//! its own position, of a higher sequence, written by the incarnation that owns that sequence.
//! Frames are written one at a time, so after a killed process only the last can be torn and
//! nothing is later; after a power cut, or when a drive loses or rots a page, something may be.
//!
//! ```text
//!    header here sequence origin body later decision what happened
//! @A whole  yes  expected own    ok   –     Accept   the frame
//! @B whole  yes  expected own    bad  yes   Skip     the frame, damaged afterwards
//! @C whole  yes  expected own    bad  no    EndTorn  the last write was cut short
//! @D whole  yes  expected older  –    yes   Skip     ours was lost; an ended log's frame is here
//! @E whole  yes  expected older  –    no    End      the log ends; an earlier one went further
//! @F whole  yes  expected beyond –    yes   Skip     by a start that never was: damage
//! @G whole  yes  expected beyond –    no    EndTorn  likewise, and nothing after it
//! @H whole  yes  lower    –      –    yes   Skip     ours was lost; an ended log's frame is here
//! @I whole  yes  lower    –      –    no    End      the log ends; likewise
//! @J whole  yes  higher   –      –    yes   Skip     no log can hold it: damage
//! @K whole  yes  higher   –      –    no    EndTorn  likewise, and nothing after it
//! @L whole  no   –        –      –    yes   Skip     ours was lost; an earlier lap's frame is here
//! @M whole  no   –        –      –    no    End      the log ends; an earlier lap begins
//! @N broken –    –        –      –    yes   Skip     the header was damaged
//! @O broken –    –        –      –    no    EndTorn  the last write was damaged or cut short
//! @P none   –    –        –      –    yes   Skip     ours was lost; no frame begins here
//! @Q none   –    –        –      –    no    End      the log ends
//! ```
//!
//! `here`: the frame names this position (not that of an earlier lap, or of another place).
//! `origin`: the incarnation that owns the expected sequence, or one whose log ended before it, or
//! one beyond any start of this drive.
//!
//! *Skip* goes on at the later frame; the frames between are counted as damaged and exactly their
//! changes are lost. *End* and *EndTorn* put the next frame here.

/// The page at the position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// No frame's magic.
    None,
    /// A frame's magic, and a header that is damaged or makes no sense.
    Broken,
    /// A whole header of this drive.
    Whole,
}

/// A frame's sequence, beside the expected one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Below it.
    Lower,
    /// The same.
    Expected,
    /// Above it.
    Higher,
}

/// A frame's incarnation, beside the one that owns its sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// An earlier incarnation, whose log ended before this sequence.
    Older,
    /// The owner.
    Own,
    /// An incarnation that had not begun.
    Beyond,
}

/// What the scan sees at a position. When the header is not whole, the other fields say nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sight {
    /// The page.
    pub header: Header,
    /// Whether the frame says that it belongs here.
    pub here: bool,
    /// Its sequence.
    pub order: Order,
    /// Its incarnation.
    pub origin: Origin,
    /// Whether its body is whole.
    pub body: bool,
    /// Whether a later frame is near.
    pub later: bool,
}

/// What to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Take the frame and go on after it.
    Accept,
    /// Go on at the later frame; those between are lost.
    Skip,
    /// The log ends here.
    End,
    /// The log ends here, in a write that did not finish or was damaged.
    EndTorn,
}

/// A row of the table; `None` matches anything.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its letter in the table above.
    pub label: char,
    header: Header,
    here: Option<bool>,
    order: Option<Order>,
    origin: Option<Origin>,
    body: Option<bool>,
    later: Option<bool>,
    /// What to do.
    pub decision: Decision,
}

const fn case(label: char, header: Header, decision: Decision) -> Case {
    Case { label, header, here: None, order: None, origin: None, body: None, later: None, decision }
}

impl Case {
    const fn here(mut self, here: bool) -> Case {
        self.here = Some(here);
        self
    }

    const fn order(mut self, order: Order) -> Case {
        self.here = Some(true);
        self.order = Some(order);
        self
    }

    const fn origin(mut self, origin: Origin) -> Case {
        self.origin = Some(origin);
        self.order(Order::Expected)
    }

    const fn body(mut self, body: bool) -> Case {
        self.body = Some(body);
        self.origin(Origin::Own)
    }

    const fn later(mut self, later: bool) -> Case {
        self.later = Some(later);
        self
    }

    fn matches(&self, sight: &Sight) -> bool {
        let is = |wanted: Option<bool>, found: bool| wanted.is_none_or(|wanted| wanted == found);
        self.header == sight.header
            && is(self.here, sight.here)
            && self.order.is_none_or(|order| order == sight.order)
            && self.origin.is_none_or(|origin| origin == sight.origin)
            && is(self.body, sight.body)
            && is(self.later, sight.later)
    }
}

/// The table. Every sight matches exactly one row.
pub const CASES: [Case; 17] = {
    use Decision::{Accept, End, EndTorn, Skip};
    use Header::{Broken, None, Whole};
    use Order::{Higher, Lower};
    use Origin::{Beyond, Older};
    [
        case('A', Whole, Accept).body(true),
        case('B', Whole, Skip).body(false).later(true),
        case('C', Whole, EndTorn).body(false).later(false),
        case('D', Whole, Skip).origin(Older).later(true),
        case('E', Whole, End).origin(Older).later(false),
        case('F', Whole, Skip).origin(Beyond).later(true),
        case('G', Whole, EndTorn).origin(Beyond).later(false),
        case('H', Whole, Skip).order(Lower).later(true),
        case('I', Whole, End).order(Lower).later(false),
        case('J', Whole, Skip).order(Higher).later(true),
        case('K', Whole, EndTorn).order(Higher).later(false),
        case('L', Whole, Skip).here(false).later(true),
        case('M', Whole, End).here(false).later(false),
        case('N', Broken, Skip).later(true),
        case('O', Broken, EndTorn).later(false),
        case('P', None, Skip).later(true),
        case('Q', None, End).later(false),
    ]
};

/// How often each row was met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Visits([u32; CASES.len()]);

impl Visits {
    pub(crate) fn count(&mut self, case: &Case) {
        let row = CASES.iter().position(|row| row.label == case.label);
        self.0[row.expect("a row of the table")] += 1;
    }

    /// Each row's letter, and how often it was met.
    pub fn iter(&self) -> impl Iterator<Item = (char, u32)> {
        CASES.iter().zip(self.0).map(|(case, count)| (case.label, count))
    }
}

/// The row that a sight matches.
pub fn decide(sight: &Sight) -> &'static Case {
    CASES.iter().find(|case| case.matches(sight)).expect("the table has a row for every sight")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_sight() -> Vec<Sight> {
        let mut all = Vec::new();
        for header in [Header::None, Header::Broken, Header::Whole] {
            for order in [Order::Lower, Order::Expected, Order::Higher] {
                for origin in [Origin::Older, Origin::Own, Origin::Beyond] {
                    for bits in 0..8 {
                        let (here, body, later) = (bits & 1 == 1, bits & 2 == 2, bits & 4 == 4);
                        all.push(Sight { header, here, order, origin, body, later });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_sight_matches_exactly_one_case_and_every_case_some_sight() {
        let sights = every_sight();
        assert_eq!(sights.len(), 216);
        for sight in &sights {
            let matching: Vec<char> =
                CASES.iter().filter(|case| case.matches(sight)).map(|case| case.label).collect();
            assert_eq!(matching.len(), 1, "{sight:?} matches {matching:?}");
        }
        for case in &CASES {
            assert!(sights.iter().any(|sight| case.matches(sight)), "@{} never", case.label);
        }
    }

    #[test]
    fn only_the_expected_frame_is_accepted_and_only_a_later_one_lets_the_log_go_on() {
        for sight in every_sight() {
            let decision = decide(&sight).decision;
            let expected = sight.header == Header::Whole
                && sight.here
                && sight.order == Order::Expected
                && sight.origin == Origin::Own
                && sight.body;
            assert_eq!(decision == Decision::Accept, expected, "{sight:?}");
            if !expected {
                assert_eq!(decision == Decision::Skip, sight.later, "{sight:?}");
            }
        }
    }

    #[test]
    fn the_comment_at_the_top_has_the_same_rows() {
        let source = include_str!("decision.rs");
        let rows: Vec<&str> = source.lines().filter(|line| line.starts_with("//! @")).collect();
        assert_eq!(rows.len(), CASES.len());
        for (row, case) in rows.iter().zip(&CASES) {
            let words: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(words[1], format!("@{}", case.label));
            assert_eq!(words[2], format!("{:?}", case.header).to_lowercase());
            let show = |flag: Option<bool>, yes: &str, no: &str| match flag {
                Some(true) => yes.to_string(),
                Some(false) => no.to_string(),
                None => "–".to_string(),
            };
            assert_eq!(words[3], show(case.here, "yes", "no"), "{row}");
            let order =
                case.order.map_or("–".into(), |order| format!("{order:?}").to_lowercase());
            assert_eq!(words[4], order, "{row}");
            let origin = case.origin.map_or("–".into(), |o| format!("{o:?}").to_lowercase());
            assert_eq!(words[5], origin, "{row}");
            assert_eq!(words[6], show(case.body, "ok", "bad"), "{row}");
            assert_eq!(words[7], show(case.later, "yes", "no"), "{row}");
            assert_eq!(words[8], format!("{:?}", case.decision), "{row}");
        }
    }

    #[test]
    fn the_page_in_the_documentation_has_the_same_rows() {
        let page = include_str!("../../../docs/format.md");
        let row = |line: &'static str| -> Vec<&str> {
            line.trim_matches('|').split('|').map(str::trim).collect()
        };
        let rows: Vec<_> = page.lines().map(row).filter(|row| row.len() == 8).collect();
        let rows = &rows[2..];
        assert_eq!(rows.len(), CASES.len());
        for (row, case) in rows.iter().zip(&CASES) {
            assert_eq!(row[0], case.label.to_string());
            assert_eq!(row[1], format!("{:?}", case.header).to_lowercase());
            assert_eq!(row[6], case.later.map_or("", |later| if later { "yes" } else { "no" }));
            let decision = match case.decision {
                Decision::Accept => "accept",
                Decision::Skip => "skip",
                Decision::End => "end",
                Decision::EndTorn => "end, torn",
            };
            assert_eq!(row[7], decision, "@{}", case.label);
        }
    }
}
