//! The surface that versions promise, as a snapshot: a change of it shows in review.
//!
//! It is read from the sources: every public item of the promised modules, re-exports followed, with the signatures of
//! methods and the traits that types implement. What macros other than `derive` generate is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, TraitItem, Type, UseTree, Visibility};

/// Set to write the snapshot anew. A line that goes or changes is a breaking change: the changelog says so, and the next
/// version is a new minor one while the major is 0.
const UPDATE: &str = "UPDATE_SNAPSHOTS";
/// As the documentation of the crate lists them.
const PROMISED: [&str; 6] = ["model", "engine", "session", "conversation", "text", "sample"];

/// Path of a module from the root of the crate.
type ModulePath = Vec<String>;

/// All modules of the crate.
struct Sources(BTreeMap<ModulePath, Vec<Item>>);

impl Sources {
    fn read(source: &Path) -> Sources {
        let mut sources = Sources(BTreeMap::new());
        sources.add(Vec::new(), &source.join("lib.rs"), source);
        sources
    }

    fn add(&mut self, path: ModulePath, file: &Path, folder: &Path) {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let items = syn::parse_file(&text).expect("it compiles").items;
        for item in &items {
            let Item::Mod(module) = item else { continue };
            if module.content.is_some() || is_test(&module.attrs) {
                continue;
            }
            let name = module.ident.to_string();
            let flat = folder.join(&name).with_extension("rs");
            let file = if flat.exists() { flat } else { folder.join(&name).join("mod.rs") };
            self.add([&path[..], std::slice::from_ref(&name)].concat(), &file, &folder.join(&name));
        }
        self.0.insert(path, items);
    }

    /// Where `name` as seen in `module` is defined.
    fn find(&self, module: &ModulePath, name: &str) -> Option<(ModulePath, &Item)> {
        let items = self.0.get(module)?;
        if let Some(item) = items.iter().find(|item| ident(item).is_some_and(|own| own == name)) {
            return Some((module.clone(), item));
        }
        items.iter().find_map(|item| {
            let Item::Use(import) = item else { return None };
            let uses = leaves(&import.tree);
            let (path, _) = uses.iter().find(|(_, seen)| seen == name)?;
            let (target, name) = self.target(module, path)?;
            self.find(&target, &name)
        })
    }

    /// The module and the name in it that a path in a `use` of `module` means; `None` outside the crate.
    fn target(&self, module: &ModulePath, path: &[String]) -> Option<(ModulePath, String)> {
        let (name, way) = path.split_last()?;
        let mut at = match way.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            _ => module.clone(),
        };
        for step in way {
            match step.as_str() {
                "crate" | "self" => {}
                "super" => drop(at.pop()),
                step => at.push(step.to_owned()),
            }
        }
        self.0.contains_key(&at).then(|| (at, name.clone()))
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.to_token_stream().to_string().contains("cfg (test)"))
}

fn ident(item: &Item) -> Option<String> {
    Some(match item {
        Item::Struct(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Const(item) => item.ident.to_string(),
        Item::Static(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Mod(item) => item.ident.to_string(),
        _ => return None,
    })
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// The names that a `use` brings in, with their paths.
fn leaves(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    match tree {
        UseTree::Path(path) => leaves(&path.tree)
            .into_iter()
            .map(|(rest, name)| ([vec![path.ident.to_string()], rest].concat(), name))
            .collect(),
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], name.ident.to_string())],
        UseTree::Rename(rename) => vec![(vec![rename.ident.to_string()], rename.rename.to_string())],
        UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
        UseTree::Glob(_) => Vec::new(),
    }
}

/// Tokens as people write them.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        ("& ", "&"),
        (" :", ":"),
        ("[ ", "["),
        (" ]", "]"),
        (" ;", ";"),
        ("' ", "'"),
        (" !", "!"),
        ("->(", "-> ("),
        (",)", ")"),
        ("=(", "= ("),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// What an attribute says about a promise: conditions, and whether more may come.
fn marks(attributes: &[Attribute]) -> String {
    let words = attributes.iter().map(text).filter(|text| {
        text.starts_with("#[cfg(feature")
            || text.starts_with("# [cfg(feature")
            || text.contains("non_exhaustive")
    });
    words.map(|word| word.replace("# [", "#[") + " ").collect()
}

struct Surface<'s> {
    sources: &'s Sources,
    lines: BTreeSet<String>,
}

impl Surface<'_> {
    fn module(&mut self, path: &ModulePath) {
        for item in &self.sources.0[path] {
            match item {
                Item::Mod(module) if is_public(&module.vis) && module.content.is_none() => {
                    self.module(&[&path[..], &[module.ident.to_string()]].concat());
                }
                Item::Use(import) if is_public(&import.vis) => {
                    for (way, name) in leaves(&import.tree) {
                        self.export(path, &way, &name);
                    }
                }
                item => self.item(path, &path.join("::"), item),
            }
        }
    }

    /// An item that `module` exports from elsewhere.
    fn export(&mut self, module: &ModulePath, way: &[String], name: &str) {
        let public = module.join("::");
        let found = self.sources.target(module, way).and_then(|(at, name)| self.sources.find(&at, &name));
        let line = match found {
            Some((home, item)) if !is_promised(self.sources, &home) => {
                return self.item(&home, &public, item);
            }
            Some((home, _)) => format!("{public}::{name} = {}::{name}", home.join("::")),
            None => format!("{public}::{name} = {}", way.join("::")),
        };
        self.lines.insert(line);
    }

    fn line(&mut self, attributes: &[Attribute], line: String) {
        self.lines.insert(format!("{}{line}", marks(attributes)));
    }

    fn item(&mut self, home: &ModulePath, path: &str, item: &Item) {
        match item {
            Item::Struct(item) if is_public(&item.vis) => {
                let name = format!("{path}::{}", item.ident);
                self.line(&item.attrs, format!("{name} struct {}", text(&item.generics)));
                self.fields(&name, &item.fields);
                self.traits(home, &name, &item.ident.to_string(), &item.attrs);
            }
            Item::Enum(item) if is_public(&item.vis) => {
                let name = format!("{path}::{}", item.ident);
                self.line(&item.attrs, format!("{name} enum {}", text(&item.generics)));
                for variant in &item.variants {
                    let mut plain = variant.clone();
                    plain.attrs.clear();
                    for field in &mut plain.fields {
                        field.attrs.clear();
                    }
                    self.line(&variant.attrs, format!("{name}::{}", text(&plain)));
                }
                self.traits(home, &name, &item.ident.to_string(), &item.attrs);
            }
            Item::Trait(item) if is_public(&item.vis) => {
                let name = format!("{path}::{}", item.ident);
                self.line(&item.attrs, format!("{name} trait: {}", text(&item.supertraits)));
                for part in &item.items {
                    if let TraitItem::Fn(method) = part {
                        self.line(&method.attrs, format!("{name}.{}", text(&method.sig)));
                    }
                }
            }
            Item::Fn(item) if is_public(&item.vis) => {
                self.line(&item.attrs, format!("{path}::{}", text(&item.sig)));
            }
            Item::Const(item) if is_public(&item.vis) => {
                self.line(&item.attrs, format!("{path}::{} const {}", item.ident, text(&item.ty)));
            }
            Item::Type(item) if is_public(&item.vis) => {
                self.line(&item.attrs, format!("{path}::{} type {}", item.ident, text(&item.ty)));
            }
            _ => {}
        }
    }

    fn fields(&mut self, name: &str, fields: &Fields) {
        for (number, field) in fields.iter().enumerate().filter(|(_, field)| is_public(&field.vis)) {
            let label = field.ident.as_ref().map_or(number.to_string(), ToString::to_string);
            self.line(&field.attrs, format!("{name}.{label}: {}", text(&field.ty)));
        }
    }

    /// Derived traits, implemented ones, and methods.
    fn traits(&mut self, home: &ModulePath, name: &str, own: &str, attributes: &[Attribute]) {
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("derive")) {
            let list = attribute.meta.require_list().expect("a list").tokens.to_string();
            for derived in
                list.split(',').map(|derived| derived.replace(' ', "")).filter(|name| !name.is_empty())
            {
                let short = derived.rsplit("::").next().unwrap_or_default();
                self.lines.insert(format!("{name}: {short}"));
            }
        }
        let sources = self.sources;
        for (module, items) in &sources.0 {
            for item in items {
                let Item::Impl(block) = item else { continue };
                let Type::Path(of) = &*block.self_ty else { continue };
                let Some(last) = of.path.segments.last().filter(|last| last.ident == own) else { continue };
                let Some((at, _)) = sources.find(module, &last.ident.to_string()) else { continue };
                if at != *home || is_test(&block.attrs) {
                    continue;
                }
                if let Some((_, path, _)) = &block.trait_ {
                    self.line(&block.attrs, format!("{name}: {}", text(path)));
                    continue;
                }
                for part in &block.items {
                    match part {
                        ImplItem::Fn(method) if is_public(&method.vis) => {
                            self.line(&method.attrs, format!("{name}.{}", text(&method.sig)));
                        }
                        ImplItem::Const(constant) if is_public(&constant.vis) => {
                            let line = format!("{name}::{} const {}", constant.ident, text(&constant.ty));
                            self.line(&constant.attrs, line);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Whether a module is public all the way down, under a promised one.
fn is_promised(sources: &Sources, path: &ModulePath) -> bool {
    let promised = path.first().is_some_and(|first| PROMISED.contains(&first.as_str()));
    promised
        && (1..path.len()).all(|depth| {
            sources.0[&path[..depth].to_vec()].iter().any(|item| {
                matches!(item, Item::Mod(module) if module.ident == path[depth] && is_public(&module.vis))
            })
        })
}

#[test]
fn the_promised_surface_is_as_in_the_snapshot() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let sources = Sources::read(&root.join("src"));
    let mut surface = Surface { sources: &sources, lines: BTreeSet::new() };
    for name in PROMISED {
        surface.module(&vec![name.to_owned()]);
    }
    let found: String = surface.lines.iter().map(|line| format!("{}\n", line.trim_end())).collect();
    let path = root.join("tests/surface.txt");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &found).expect("a writable file");
    }
    let snapshot = std::fs::read_to_string(&path).unwrap_or_default();
    let (new, old): (BTreeSet<&str>, BTreeSet<&str>) = (found.lines().collect(), snapshot.lines().collect());
    let gone: Vec<_> = old.difference(&new).collect();
    let come: Vec<_> = new.difference(&old).collect();
    assert!(
        gone.is_empty() && come.is_empty(),
        "the surface changed; run with {UPDATE}=1 if that is meant\ngone: {gone:#?}\nnew: {come:#?}"
    );
    assert!(snapshot.lines().count() > 100);
}
