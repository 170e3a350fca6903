//! Rules about Rust code, read as a syntax tree.
//!
//! * `unsafe` stands only at the edges: in the crates that touch memory which a device or the
//!   kernel may write, and there each block and impl says right above itself why it is sound.
//! * Every other crate forbids it in each of its roots.
//! * A function is short enough to be read at once; a file begins by saying what it is about.
//! * A test does not wait for time to pass and hope.

use std::path::Path;

use proc_macro2::{LineColumn, Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::Complaint;
use crate::source::Source;

/// Lines of a function, at most, from its signature to its closing brace.
pub const FUNCTION_LINES_MAX: usize = 70;

/// Folders of crates that may hold `unsafe` anywhere in their code.
const UNSAFE_CRATES: [&str; 4] = ["drivers/dma", "drivers/block", "drivers/nvme", "drivers/net"];

/// Single files of other crates that may, and the crates' roots deny it everywhere else.
const UNSAFE_FILES: &[&str] = &[
    "poller/src/sync.rs",
    "ci/crates/vm/src/ticks.rs",
    "ci/crates/vm/src/guest/samples.rs",
    "client-libs/python/src/buffer.rs",
    "client-libs/capi/src/memory.rs",
    "client-libs/capi/src/calls.rs",
    "client-libs/capi/src/queue.rs",
    "client-libs/kvbm/src/memory.rs",
    "client-libs/kvbm/tests/common/nixl.rs",
    "client-libs/nixl/src/core.rs",
    "client-libs/nixl/src/device.rs",
    "client-libs/nixl/src/edge.rs",
    "client-libs/nixl/src/memory.rs",
    "client-libs/nixl/src/staged.rs",
    "client-libs/nixl/src/transfer.rs",
    "client-libs/kv-store/src/abi.rs",
    "client-libs/kv-store/src/memory.rs",
    "client-libs/preload/src/real.rs",
    "client-libs/preload/src/memory.rs",
    "client-libs/preload/src/table.rs",
    "client-libs/preload/src/symbols/mod.rs",
    "client-libs/preload/src/symbols/descriptors.rs",
    "client-libs/preload/src/symbols/directories.rs",
    "client-libs/preload/src/symbols/paths.rs",
    "client-libs/preload/src/symbols/streams.rs",
];

/// Tests that wait because waiting is what they are about.
const WAITING_TESTS: [(&str, &str); 0] = [];

/// What one file holds that the rules are about.
struct Findings {
    /// Lines where `unsafe` stands, and whether a `SAFETY` line is right above.
    unsafes: Vec<(usize, bool)>,
    /// Name, first line and number of lines of each function.
    functions: Vec<(String, usize, usize)>,
    /// Lines of calls in tests that wait for time to pass.
    sleeps: Vec<usize>,
}

/// Everything that is wrong with one Rust file.
#[must_use]
pub fn complaints(source: &Source) -> Vec<Complaint> {
    let findings = match findings(source) {
        Ok(findings) => findings,
        Err(error) => return vec![source.complaint(error.span().start().line, error.to_string())],
    };
    let mut found = unsafe_complaints(source, &findings);
    for (name, line, lines) in findings.functions {
        if lines > FUNCTION_LINES_MAX {
            let what = format!("`{name}` has {lines} lines, {FUNCTION_LINES_MAX} are the limit");
            found.push(source.complaint(line, what));
        }
    }
    let may_wait = WAITING_TESTS.iter().any(|(path, _)| source.path == Path::new(path));
    for line in findings.sleeps.into_iter().filter(|_| !may_wait) {
        let what = "a test that sleeps is slow when it need not be and wrong when it must be: \
            wait for what happens";
        found.push(source.complaint(line, what));
    }
    if !source.text.starts_with("//!") {
        found.push(source.complaint(1, "a file begins by saying what it is about (`//!`)"));
    }
    found
}

fn unsafe_complaints(source: &Source, findings: &Findings) -> Vec<Complaint> {
    let at_home = UNSAFE_CRATES.iter().any(|folder| source.path.starts_with(folder))
        || UNSAFE_FILES.iter().any(|file| source.path == Path::new(file));
    let mut found = Vec::new();
    for &(line, argued) in &findings.unsafes {
        if !at_home {
            found.push(source.complaint(line, "`unsafe` stands only at the edges of the house"));
        } else if !argued {
            found.push(source.complaint(line, "a `// SAFETY:` line is missing right above"));
        }
    }
    found
}

/// What is wrong with the root file of a crate's target (a library or a binary).
#[must_use]
pub fn root_complaints(root: &Source) -> Vec<Complaint> {
    let folder = |folder: &&str| root.path.starts_with(folder);
    if UNSAFE_CRATES.iter().any(folder) {
        return Vec::new();
    }
    let partly = UNSAFE_FILES.iter().any(|file| {
        Path::new(file).ancestors().nth(2).is_some_and(|top| root.path.starts_with(top))
    });
    let line = if partly { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
    if root.text.lines().any(|found| found == line) {
        return Vec::new();
    }
    vec![root.complaint(0, format!("`{line}` is missing"))]
}

fn findings(source: &Source) -> syn::Result<Findings> {
    let file = syn::parse_file(&source.text)?;
    let mut reader = Reader {
        lines: source.text.lines().collect(),
        statements: Vec::new(),
        in_test: source.path.components().any(|part| part.as_os_str() == "tests"),
        findings: Findings { unsafes: vec![], functions: vec![], sleeps: vec![] },
    };
    reader.visit_file(&file);
    Ok(reader.findings)
}

/// Walks the tree of one file.
struct Reader<'a> {
    lines: Vec<&'a str>,
    /// First lines of the statements, arms, fields and items around the place being read.
    statements: Vec<usize>,
    in_test: bool,
    findings: Findings,
}

impl Reader<'_> {
    fn found_unsafe(&mut self, at: Span) {
        let line = at.start().line;
        let innermost = self.statements.last().copied();
        let argued = self.argued_above(line) || innermost.is_some_and(|at| self.argued_above(at));
        self.findings.unsafes.push((line, argued));
    }

    /// Whether the comment that ends right above `line` holds a `SAFETY:` line. Attributes may
    /// stand between.
    fn argued_above(&self, line: usize) -> bool {
        let above = self.lines[..line - 1].iter().rev().map(|line| line.trim_start());
        above
            .skip_while(|line| line.starts_with("#["))
            .take_while(|line| line.starts_with("//"))
            .any(|line| line.starts_with("// SAFETY:"))
    }

    fn function(&mut self, name: &syn::Ident, begin: LineColumn, block: &syn::Block) {
        let lines = block.span().end().line - begin.line + 1;
        self.findings.functions.push((name.to_string(), begin.line, lines));
    }

    /// What is `unsafe` or a sleep inside a macro's arguments, which are no tree.
    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(word) if word == "unsafe" => self.found_unsafe(word.span()),
                _ => {}
            }
        }
    }

    fn within(&mut self, begin: Span, visit: impl FnOnce(&mut Self)) {
        self.statements.push(begin.start().line);
        visit(self);
        self.statements.pop();
    }

    fn within_test(&mut self, attributes: &[syn::Attribute], visit: impl FnOnce(&mut Self)) {
        let outside = self.in_test;
        self.in_test |= attributes.iter().any(|attribute| {
            attribute.path().is_ident("test")
                || attribute.path().is_ident("cfg")
                    && matches!(&attribute.meta, syn::Meta::List(list)
                        if list.tokens.to_string().split(|c: char| !c.is_alphanumeric())
                            .any(|word| word == "test"))
        });
        visit(self);
        self.in_test = outside;
    }
}

impl<'tree> Visit<'tree> for Reader<'_> {
    fn visit_stmt(&mut self, node: &'tree syn::Stmt) {
        self.within(node.span(), |this| visit::visit_stmt(this, node));
    }

    fn visit_arm(&mut self, node: &'tree syn::Arm) {
        self.within(node.span(), |this| visit::visit_arm(this, node));
    }

    fn visit_field_value(&mut self, node: &'tree syn::FieldValue) {
        self.within(node.span(), |this| visit::visit_field_value(this, node));
    }

    fn visit_item(&mut self, node: &'tree syn::Item) {
        self.within(node.span(), |this| visit::visit_item(this, node));
    }

    fn visit_item_mod(&mut self, node: &'tree syn::ItemMod) {
        self.within_test(&node.attrs, |this| visit::visit_item_mod(this, node));
    }

    fn visit_item_fn(&mut self, node: &'tree syn::ItemFn) {
        self.function(&node.sig.ident, node.sig.span().start(), &node.block);
        self.within_test(&node.attrs, |this| visit::visit_item_fn(this, node));
    }

    fn visit_impl_item_fn(&mut self, node: &'tree syn::ImplItemFn) {
        self.function(&node.sig.ident, node.sig.span().start(), &node.block);
        visit::visit_impl_item_fn(self, node);
    }

    fn visit_trait_item_fn(&mut self, node: &'tree syn::TraitItemFn) {
        if let Some(block) = &node.default {
            self.function(&node.sig.ident, node.sig.span().start(), block);
        }
        visit::visit_trait_item_fn(self, node);
    }

    fn visit_expr_unsafe(&mut self, node: &'tree syn::ExprUnsafe) {
        self.found_unsafe(node.unsafe_token.span);
        visit::visit_expr_unsafe(self, node);
    }

    fn visit_item_impl(&mut self, node: &'tree syn::ItemImpl) {
        if let Some(token) = node.unsafety {
            self.found_unsafe(token.span);
        }
        visit::visit_item_impl(self, node);
    }

    fn visit_expr_call(&mut self, node: &'tree syn::ExprCall) {
        if let syn::Expr::Path(called) = &*node.func {
            let mut words = called.path.segments.iter().rev().map(|word| word.ident.to_string());
            let sleeps = words.next().is_some_and(|word| word == "sleep")
                && words.next().is_none_or(|word| word == "thread");
            if self.in_test && sleeps {
                self.findings.sleeps.push(node.span().start().line);
            }
        }
        visit::visit_expr_call(self, node);
    }

    fn visit_macro(&mut self, node: &'tree syn::Macro) {
        self.tokens(node.tokens.clone());
        visit::visit_macro(self, node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_in(path: &str, code: &str) -> Vec<(usize, String)> {
        let source = Source::new(path, &format!("//! A file.\n{code}"));
        let complaint = |complaint: Complaint| (complaint.line, complaint.what);
        complaints(&source).into_iter().map(complaint).collect()
    }

    #[test]
    fn unsafe_inside_the_house_is_found() {
        let code = "fn a() {\n    // SAFETY: argued well.\n    unsafe { b() };\n}\n";
        assert_eq!(found_in("drivers/dma/src/pool.rs", code), []);
        assert_eq!(found_in("poller/src/sync.rs", code), []);
        for path in ["journal/src/lib.rs", "poller/src/reactor.rs", "drivers/dmax/src/lib.rs"] {
            let found = found_in(path, code);
            assert_eq!((found.len(), found[0].0), (1, 4), "{path}");
        }
    }

    #[test]
    fn unsafe_without_an_argument_right_above_is_found() {
        let bad = [
            "fn a() {\n    unsafe { b() };\n}\n",
            "fn a() {\n    // SAFETY: far away.\n\n    unsafe { b() };\n}\n",
            "fn a() {\n    // safety: not the word.\n    unsafe { b() };\n}\n",
            "struct A;\nunsafe impl Send for A {}\n",
            "fn a() {\n    assert!(unsafe { b() });\n}\n",
            "// SAFETY: of the function, not of the block.\nfn a() {\n    c();\n    unsafe { b() };\n}\n",
        ];
        for code in bad {
            assert_eq!(found_in("drivers/net/src/lib.rs", code).len(), 1, "{code}");
        }
    }

    #[test]
    fn an_argument_may_stand_above_the_statement_or_the_attribute() {
        let good = [
            "fn a() {\n    // SAFETY: two lines\n    // of reason.\n    let x = unsafe { b() };\n}\n",
            "fn a() {\n    // SAFETY: here.\n    let x =\n        c(unsafe { b() });\n}\n",
            "struct A;\n// SAFETY: no threads.\n#[cfg(unix)]\nunsafe impl Send for A {}\n",
            "fn a() {\n    // SAFETY: here.\n    assert!(unsafe { b() });\n}\n",
            "fn a() {\n    match x {\n        // SAFETY: here.\n        1 => unsafe { b() },\n        \
             _ => (),\n    }\n}\n",
        ];
        for code in good {
            assert_eq!(found_in("drivers/net/src/lib.rs", code), [], "{code}");
        }
    }

    #[test]
    fn roots_must_forbid_unsafe() {
        let root = |path: &str, text: &str| root_complaints(&Source::new(path, text)).len();
        assert_eq!(root("journal/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(root("journal/src/lib.rs", "//! x\n// #![forbid(unsafe_code)]\n"), 1);
        assert_eq!(root("poller/src/lib.rs", "//! x\n#![deny(unsafe_code)]\n"), 0);
        assert_eq!(root("poller/src/lib.rs", "//! x\n"), 1);
        assert_eq!(root("drivers/block/src/lib.rs", "//! x\n"), 0);
    }

    #[test]
    fn long_functions_are_found() {
        let body = "    b();\n".repeat(FUNCTION_LINES_MAX - 2);
        assert_eq!(found_in("a/src/lib.rs", &format!("/// Doc.\nfn a() {{\n{body}}}\n")), []);
        let body = "    b();\n".repeat(FUNCTION_LINES_MAX - 1);
        let shapes = [
            format!("fn a() {{\n{body}}}\n"),
            format!("impl A {{\nfn a() {{\n{body}}}\n}}\n"),
            format!("trait A {{\nfn a() {{\n{body}}}\n}}\n"),
        ];
        for code in shapes {
            assert_eq!(found_in("a/src/lib.rs", &code).len(), 1, "{code}");
        }
    }

    #[test]
    fn sleeping_tests_are_found_and_sleeping_code_is_not() {
        let code = "fn a() {\n    std::thread::sleep(x);\n}\n";
        assert_eq!(found_in("a/src/lib.rs", code), []);
        assert_eq!(found_in("a/tests/b.rs", code).len(), 1);
        for attribute in ["#[cfg(test)]", "#[cfg(all(test, not(loom)))]"] {
            let code = format!("{attribute}\nmod tests {{\n{code}}}\n");
            assert_eq!(found_in("a/src/lib.rs", &code).len(), 1, "{attribute}");
        }
        assert_eq!(
            found_in("a/tests/b.rs", "use std::thread::sleep;\nfn a() { sleep(x) }\n").len(),
            1
        );
        let innocent = "fn a() {\n    let sleep = local.sleep(x);\n    b(sleep);\n}\n";
        assert_eq!(found_in("a/tests/b.rs", innocent), []);
    }

    #[test]
    fn files_without_a_beginning_and_broken_files_are_found() {
        let mute = Source::new("a/src/b.rs", "fn a() {}\n");
        assert_eq!(complaints(&mute).len(), 1);
        let broken = Source::new("a/src/b.rs", "//! b\nfn a( {}\n");
        assert_eq!(complaints(&broken).len(), 1);
    }
}
