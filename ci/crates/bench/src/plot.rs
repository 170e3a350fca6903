//! Pictures of a run: bars of each side, drawn from the very tables of the document, so that both show the
//! same figures.
//!
//! The pictures are text of our own (SVG 1.1): the same tables give the same bytes, and colours follow what
//! the reader's screen prefers.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::error::{BenchError, doing};

/// Whose rows are drawn: scenes of the document begin with these words.
const SCENES: [&str; 5] = [
    "Values of 64 KiB, memory, 1 connection, quiet:",
    "Values of 1 MiB, memory, 1 connection, quiet:",
    "Values of 4 MiB, memory, 1 connection, quiet:",
    "Values of 8 MiB, memory, 1 connection, quiet:",
    "Values of 16 MiB, memory, 1 connection, quiet:",
];
/// Sides that are drawn, in their order, and their colours on light and on dark ground.
const SIDES: [(&str, &str, &str); 5] = [
    ("plain TCP", "#8c8c8c", "#9a9a9a"),
    ("memcached", "#b9770e", "#d9a441"),
    ("Redis", "#a83232", "#d06a6a"),
    ("Mooncake", "#6a4c93", "#a58ad0"),
    ("memkv", "#1f77b4", "#5aa9e6"),
];

/// Sizes of a picture, in its own units.
const WIDTH: usize = 720;
const LEFT: usize = 190;
const RIGHT: usize = 90;
const BAR: usize = 13;
const GAP: usize = 10;
const TOP: usize = 56;

/// One bar: whose it is, and how long.
struct Bar {
    side: usize,
    value: f64,
    label: String,
}

/// Bars under one name.
struct Group {
    name: String,
    bars: Vec<Bar>,
}

/// A picture: its file behind the document's name, its title, the column of the tables, and which part of a
/// cell of several is drawn.
struct Picture {
    file: &'static str,
    title: &'static str,
    column: usize,
    part: usize,
}

const PICTURES: [Picture; 3] = [
    Picture { file: "cpu", title: "CPU seconds per GiB, client and server", column: 2, part: 0 },
    Picture { file: "p50", title: "Half of the calls took no longer, µs", column: 6, part: 0 },
    Picture { file: "p99", title: "99 of 100 calls took no longer, µs", column: 6, part: 1 },
];

/// Draws all pictures of the document's tables beside it.
///
/// # Errors
/// When the document cannot be read, or a picture cannot be written.
pub fn draw(document: &Path) -> Result<(), BenchError> {
    let text = fs::read_to_string(document).map_err(doing("the document"))?;
    for picture in PICTURES {
        let groups = groups(&text, &picture);
        let path = document.with_file_name(format!("benchmarks-{}.svg", picture.file));
        fs::write(path, svg(picture.title, &groups)).map_err(doing("a picture"))?;
    }
    Ok(())
}

/// What a picture shows of a document: a group for each operation of each scene that it has.
fn groups(text: &str, picture: &Picture) -> Vec<Group> {
    let mut groups = Vec::new();
    for operation in ["PUT", "GET"] {
        for scene in SCENES {
            let Some((_, rest)) = text.split_once(scene) else { continue };
            let table = rest.trim_start().lines().take_while(|line| line.starts_with('|'));
            let bars: Vec<_> = table.filter_map(|row| bar(row, operation, picture)).collect();
            let size = scene.trim_start_matches("Values of ").split(',').next().unwrap_or_default();
            if !bars.is_empty() {
                groups.push(Group { name: format!("{operation} {size}"), bars });
            }
        }
    }
    groups
}

/// The bar of a row of a table, if it is one of this operation and of a side that is drawn.
fn bar(row: &str, operation: &str, picture: &Picture) -> Option<Bar> {
    let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
    if cells.first() != Some(&operation) {
        return None;
    }
    let side = SIDES.iter().position(|(name, ..)| cells.get(1) == Some(name))?;
    // `0.314 (0.295–0.317)`, or `747 / 1340`.
    let cell = cells.get(picture.column)?.split(" (").next()?;
    let label = cell.split(" / ").nth(picture.part)?;
    Some(Bar { side, value: label.parse().ok()?, label: label.to_owned() })
}

fn svg(title: &str, groups: &[Group]) -> String {
    let most = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let bars: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP + bars * BAR + groups.len() * GAP + 10;
    let mut out = String::new();
    let mut put = |text: std::fmt::Arguments<'_>| {
        writeln!(out, "{text}").expect("text can be written to a string");
    };
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
    ));
    put(format_args!("<title>{title}</title>\n<style>"));
    put(format_args!("text {{ font: 11px sans-serif; fill: #222 }} .t {{ font-weight: bold }}"));
    for (at, (_, light, _)) in SIDES.iter().enumerate() {
        put(format_args!(".s{at} {{ fill: {light} }}"));
    }
    put(format_args!("@media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }}"));
    for (at, (.., dark)) in SIDES.iter().enumerate() {
        put(format_args!(".s{at} {{ fill: {dark} }}"));
    }
    put(format_args!("}}\n</style>\n<text class=\"t\" x=\"8\" y=\"18\">{title}</text>"));
    for (at, (name, ..)) in SIDES.iter().enumerate() {
        let x = 8 + at * 110;
        put(format_args!("<rect class=\"s{at}\" x=\"{x}\" y=\"28\" width=\"10\" height=\"10\"/>"));
        put(format_args!("<text x=\"{}\" y=\"37\">{name}</text>", x + 15));
    }
    let mut y = TOP;
    for Group { name, bars } in groups {
        put(format_args!("<text x=\"8\" y=\"{}\">{name}</text>", y + BAR - 3));
        for Bar { side, value, label } in bars {
            let width = (value / most * (WIDTH - LEFT - RIGHT) as f64).max(1.0);
            let (x, height, base) = (LEFT, BAR - 2, y + BAR - 3);
            put(format_args!(
                "<rect class=\"s{side}\" x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\"/>"
            ));
            let end = LEFT as f64 + width + 5.0;
            put(format_args!("<text x=\"{end:.1}\" y=\"{base}\">{label}</text>"));
            let x = LEFT - 5;
            let side = SIDES[*side].0;
            put(format_args!("<text x=\"{x}\" y=\"{base}\" text-anchor=\"end\">{side}</text>"));
            y += BAR;
        }
        y += GAP;
    }
    put(format_args!("</svg>"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Values of 1 MiB, memory, 1 connection, quiet:\n\n\
        |     |            side |           CPU s/GiB | client | ratio | GiB/s | p50 / p99 µs |\n\
        |-----|-----------------|---------------------|--------|-------|-------|--------------|\n\
        | PUT |       plain TCP | 0.314 (0.295–0.317) |  0.172 | 1.00× |  5.21 |   747 / 1340 |\n\
        | PUT | plain TCP again | 0.323 (0.274–0.338) |  0.177 | 1.05× |  4.91 |   741 / 1316 |\n\
        | GET |           memkv | 0.358 (0.337–0.423) |  0.152 | 1.14× |  4.11 |   988 / 1646 |\n\
        \nValues of 4 KiB:\n\n| PUT | plain TCP | 9.0 (1–2) | 0 | 0 | 0 | 1 / 2 |\n";

    #[test]
    fn a_table_becomes_bars_of_each_operation_and_side() {
        let cpu = groups(TABLE, &PICTURES[0]);
        let told = |groups: &[Group]| {
            let bar = |bar: &Bar| (SIDES[bar.side].0, bar.label.clone());
            let group = |g: &Group| (g.name.clone(), g.bars.iter().map(bar).collect::<Vec<_>>());
            groups.iter().map(group).collect::<Vec<_>>()
        };
        let one = |name: &str, side, label: &str| (name.to_owned(), vec![(side, label.to_owned())]);
        let (put, get) = ("PUT 1 MiB", "GET 1 MiB");
        assert_eq!(told(&cpu), [one(put, "plain TCP", "0.314"), one(get, "memkv", "0.358")]);
        let late = groups(TABLE, &PICTURES[2]);
        assert_eq!(told(&late), [one(put, "plain TCP", "1340"), one(get, "memkv", "1646")]);
    }

    #[test]
    fn the_longest_bar_fills_the_picture_and_dark_screens_have_colours_of_their_own() {
        let picture = svg("a title", &groups(TABLE, &PICTURES[0]));
        assert!(picture.contains(&format!("width=\"{:.1}\"", (WIDTH - LEFT - RIGHT) as f64)));
        assert!(picture.contains("prefers-color-scheme: dark"));
        assert_eq!(picture.matches("<rect").count(), SIDES.len() + 2);
        assert_eq!(picture.matches('<').count(), picture.matches('>').count());
        assert_eq!(picture, svg("a title", &groups(TABLE, &PICTURES[0])), "always the same");
    }
}
