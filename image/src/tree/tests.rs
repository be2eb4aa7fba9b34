use super::*;
use crate::entry::Data;

fn entry(path: &str, kind: Kind) -> Entry {
    let meta = Meta {
        mode: 0o700,
        uid: 5,
        ..Meta::default()
    };
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        meta,
    }
}

fn directory(path: &str) -> Entry {
    entry(path, Kind::Directory)
}

/// A file that is told from others by its block.
fn file(path: &str, block: u32) -> Entry {
    let data = Data::Plain(block);
    entry(path, Kind::File(Content { size: 1, data }))
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, Kind::Symlink(target.as_bytes().to_vec()))
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, Kind::Link(target.as_bytes().to_vec()))
}

fn tree(layers: &[&[Entry]]) -> Result<Tree, TreeError> {
    let mut tree = Tree::new(&Limits::DEFAULT);
    for layer in layers {
        tree.apply(layer.to_vec())?;
    }
    Ok(tree)
}

/// All names, with the blocks of files.
fn names(tree: &Tree) -> Vec<String> {
    fn add(tree: &Tree, number: Number, path: &str, names: &mut Vec<String>) {
        let Node::Directory(entries) = &tree.inode(number).node else {
            return;
        };
        for (name, child) in entries {
            let path = format!("{path}/{}", lossy(name));
            let what = match &tree.inode(*child).node {
                Node::Directory(_) => "/".to_owned(),
                Node::File { layer, content } => match content.data {
                    Data::Plain(block) => format!("={layer}.{block}"),
                    Data::Chunks { .. } => "=?".to_owned(),
                },
                Node::Symlink(target) => format!("->{}", lossy(target)),
                _ => "?".to_owned(),
            };
            names.push(format!("{path}{what}"));
            add(tree, *child, &path, names);
        }
    }
    let mut names_found = Vec::new();
    add(tree, ROOT, "", &mut names_found);
    names_found
}

fn seen(layers: &[&[Entry]]) -> Vec<String> {
    names(&tree(layers).unwrap())
}

#[test]
fn upper_layers_replace_and_keep() {
    let lower = [directory("d"), file("d/a", 1), file("d/b", 2), file("x", 3)];
    let upper = [directory("d"), file("d/a", 1), directory("x"), file("x/y", 2)];
    assert_eq!(
        seen(&[&lower, &upper]),
        ["/d/", "/d/a=1.1", "/d/b=0.2", "/x/", "/x/y=1.2"]
    );
    // What is no directory takes a directory's place with all that is in it.
    assert_eq!(seen(&[&lower, &[file("d", 9)]]), ["/d=1.9", "/x=0.3"]);
    assert_eq!(seen(&[&lower, &[symlink("d", "x")]]), ["/d->x", "/x=0.3"]);
}

#[test]
fn whiteouts_hide_what_is_below_them_and_nothing_else() {
    let lower = [
        directory("d"),
        file("d/a", 1),
        file("d/b", 2),
        directory("d/e"),
        file("d/e/f", 3),
    ];
    let whiteout = |path| entry(path, Kind::Whiteout);
    let opaque = |path| entry(path, Kind::Opaque);
    assert_eq!(
        seen(&[&lower, &[whiteout("d/a"), whiteout("d/e")]]),
        ["/d/", "/d/b=0.2"]
    );
    assert_eq!(seen(&[&lower, &[opaque("d")]]), ["/d/"]);
    // They stand for the layers below, in whatever order the archive has them.
    assert_eq!(seen(&[&lower, &[file("d/new", 7), opaque("d")]]), ["/d/", "/d/new=1.7"]);
    assert_eq!(
        seen(&[
            &lower,
            &[file("d/a", 7), whiteout("d/a"), whiteout("d/b"), whiteout("d/e")]
        ]),
        ["/d/", "/d/a=1.7"]
    );
    assert_eq!(
        seen(&[&lower, &[whiteout("none/at/all"), whiteout("d/a/x"), opaque("d/a")]]).len(),
        5
    );
    assert_eq!(seen(&[&lower, &[opaque("")]]), Vec::<String>::new());
    assert_eq!(seen(&[&lower, &[whiteout("d")], &lower]).len(), 5);
}

#[test]
fn hard_links_are_one_inode_across_layers() {
    let lower = [file("a", 1), link("b", "a")];
    let upper = [directory("d"), link("d/c", "a"), file("a", 2)];
    let tree = tree(&[&lower, &upper]).unwrap();
    assert_eq!(names(&tree), ["/a=1.2", "/b=0.1", "/d/", "/d/c=0.1"]);
    let (order, links) = tree.walk();
    assert_eq!(order.len(), 4);
    let mut counts: Vec<_> = links.values().copied().collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 2, 2, 3]);
}

#[test]
fn links_lead_nowhere_else() {
    assert!(matches!(tree(&[&[link("a", "none")]]), Err(TreeError::NoTarget { .. })));
    assert!(matches!(tree(&[&[link("a", "b/c")]]), Err(TreeError::NoTarget { .. })));
    assert!(matches!(
        tree(&[&[directory("d"), link("a", "d")]]),
        Err(TreeError::DirectoryTarget { .. })
    ));
    assert!(matches!(
        tree(&[&[link("a", "")]]),
        Err(TreeError::DirectoryTarget { .. })
    ));
    assert!(matches!(tree(&[&[file("", 1)]]), Err(TreeError::Root)));
    assert!(matches!(tree(&[&[file("a", 1), link("", "a")]]), Err(TreeError::Root)));
    let loops = [symlink("a", "b"), symlink("b", "a"), file("a/x", 1)];
    assert!(matches!(tree(&[&loops]), Err(TreeError::Loop(_))));
    assert!(matches!(
        tree(&[&[file("f", 1), file("f/x", 2)]]),
        Err(TreeError::NotADirectory { .. })
    ));
    assert!(matches!(
        tree(&[&[file("f", 1), file("f/x/y", 2)]]),
        Err(TreeError::NotADirectory { .. })
    ));
}

#[test]
fn symbolic_links_as_parents_stay_in_the_root() {
    let entries = [
        symlink("up", "../../.."),
        symlink("abs", "/etc/x"),
        file("up/passwd", 1),
        file("abs/y/z", 2),
        symlink("rel", "etc/../etc/./x"),
        file("rel/w", 3),
    ];
    let expected = [
        "/abs->/etc/x",
        "/etc/",
        "/etc/x/",
        "/etc/x/w=0.3",
        "/etc/x/y/",
        "/etc/x/y/z=0.2",
        "/passwd=0.1",
        "/rel->etc/../etc/./x",
        "/up->../../..",
    ];
    assert_eq!(seen(&[&entries]), expected);
    // The link itself is replaced, not what it leads to.
    assert_eq!(
        seen(&[&[directory("d"), symlink("l", "d")], &[directory("l")]]),
        ["/d/", "/l/"]
    );
}

#[test]
fn files_are_found_through_links() {
    let entries = [
        symlink("etc", "usr/etc"),
        file("usr/etc/passwd", 4),
        symlink("usr/etc/group", "/usr/etc/passwd"),
        directory("usr/etc/shadow"),
    ];
    let mut tree = tree(&[&entries]).unwrap();
    let mut block = |path: &str| {
        tree.file(path.as_bytes())
            .unwrap()
            .map(|(layer, content)| (layer, content.data.clone()))
    };
    assert_eq!(block("etc/passwd"), Some((0, Data::Plain(4))));
    assert_eq!(block("etc/group"), Some((0, Data::Plain(4))));
    for none in ["etc/shadow", "etc/none", "etc/passwd/x", "none/x", ""] {
        assert_eq!(block(none), None, "{none}");
    }
}

#[test]
fn directories_are_made_where_nothing_is() {
    let mut tree = tree(&[&[file("f", 1), symlink("l", "deep")]]).unwrap();
    for path in ["f", "l/er", "new/dir", "new"] {
        tree.make_directory(path.as_bytes()).unwrap();
    }
    assert!(tree.make_directory(b"f/x").is_err());
    assert_eq!(
        names(&tree),
        ["/deep/", "/deep/er/", "/f=0.1", "/l->deep", "/new/", "/new/dir/"]
    );
}

#[test]
fn there_is_an_end() {
    let limits = Limits {
        entries: 5,
        ..Limits::DEFAULT
    };
    let deep = "a/".repeat(20) + "x";
    let mut tree = Tree::new(&limits);
    assert!(matches!(tree.apply(vec![file(&deep, 1)]), Err(TreeError::Inodes(10))));
}
