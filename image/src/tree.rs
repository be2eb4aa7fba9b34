//! Layers put over each other: the root file system that they make, in memory.
//!
//! Paths are walked here and nowhere else. A symbolic link in the place of a directory is followed as a process in the
//! container would follow it: an absolute target begins at the root, and `..` in the root is the root.

use std::collections::BTreeMap;
use std::collections::btree_map;

use thiserror::Error;

use crate::entry::{Content, Entry, Kind, Meta};
use crate::layer::lossy;
use crate::limits::Limits;

/// The most symbolic links on the way to one name (`MAXSYMLINKS` of Linux).
const MAX_LINKS: usize = 40;
/// What a directory gets that no entry describes.
const MODE: u16 = 0o755;

/// Why layers do not make a root file system.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TreeError {
    #[error("{path:?} cannot be: {parent:?} on the way to it is not a directory")]
    NotADirectory { path: String, parent: String },
    #[error("{0:?} cannot be: there are too many symbolic links on the way to it")]
    Loop(String),
    #[error("the hard link {path:?} leads to {target:?}, which is not there")]
    NoTarget { path: String, target: String },
    #[error("the hard link {path:?} leads to the directory {target:?}")]
    DirectoryTarget { path: String, target: String },
    #[error("the root directory cannot be anything but a directory")]
    Root,
    #[error("it has more than {0} files and directories")]
    Inodes(usize),
}

/// A root file system.
#[derive(Debug)]
pub struct Tree {
    /// The first one is the root directory. Those that nothing names any more stay, and are not written.
    inodes: Vec<Inode>,
    limit: usize,
    /// Layers that were applied.
    layers: u16,
}

/// A file, a directory or something else.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Owner, mode and so on.
    pub meta: Meta,
    /// What it is.
    pub node: Node,
}

/// An inode's number in its tree.
pub type Number = usize;

/// What an inode is.
#[derive(Clone, Debug)]
pub enum Node {
    /// A directory: names and what they stand for.
    Directory(BTreeMap<Vec<u8>, Number>),
    /// A regular file, whose contents are in the layer of this number.
    File {
        /// Layers are counted from the lowest, which is 0.
        layer: u16,
        /// Size, and where in the layer file it is.
        content: Content,
    },
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A device.
    Device {
        /// Block, not character.
        block: bool,
        /// The device's major number.
        major: u32,
        /// The device's minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// The root directory's number.
pub const ROOT: Number = 0;

impl Tree {
    /// An empty root directory.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let root = Inode {
            meta: Meta {
                mode: MODE,
                ..Meta::default()
            },
            node: Node::Directory(BTreeMap::new()),
        };
        Self {
            inodes: vec![root],
            limit: limits.entries.saturating_mul(2),
            layers: 0,
        }
    }

    /// An inode of the tree.
    ///
    /// # Panics
    /// The number is not one that the tree has given.
    #[must_use]
    pub fn inode(&self, number: Number) -> &Inode {
        &self.inodes[number]
    }

    /// Puts the next layer over the tree.
    ///
    /// # Errors
    /// What cannot be, such as a file below a file.
    pub fn apply(&mut self, entries: Vec<Entry>) -> Result<(), TreeError> {
        // Whiteouts hide what the layers below have, wherever in the archive they stand.
        for entry in &entries {
            match entry.kind {
                Kind::Whiteout => self.remove(&entry.path)?,
                Kind::Opaque => self.empty(&entry.path)?,
                _ => {}
            }
        }
        for entry in entries {
            self.put(entry)?;
        }
        self.layers += 1;
        Ok(())
    }

    fn put(&mut self, entry: Entry) -> Result<(), TreeError> {
        let Entry { path, kind, meta } = entry;
        let node = match kind {
            Kind::Whiteout | Kind::Opaque => return Ok(()),
            Kind::Link(target) => return self.link(&path, &target),
            Kind::Directory => return self.directory(&path, meta),
            Kind::File(content) => Node::File {
                layer: self.layers,
                content,
            },
            Kind::Symlink(target) => Node::Symlink(target),
            Kind::Device { block, major, minor } => Node::Device { block, major, minor },
            Kind::Fifo => Node::Fifo,
            Kind::Socket => Node::Socket,
        };
        let (parent, name) = self.make_parent(&path, meta.mtime)?.ok_or(TreeError::Root)?;
        let number = self.add(Inode { meta, node })?;
        self.name(parent, name, number);
        Ok(())
    }

    /// A directory keeps what is in it, whatever else is there makes room.
    fn directory(&mut self, path: &[u8], meta: Meta) -> Result<(), TreeError> {
        let Some((parent, name)) = self.make_parent(path, meta.mtime)? else {
            self.inodes[ROOT].meta = meta;
            return Ok(());
        };
        match self.child(parent, &name) {
            Some(there) if self.is_directory(there) => self.inodes[there].meta = meta,
            _ => {
                let node = Node::Directory(BTreeMap::new());
                let number = self.add(Inode { meta, node })?;
                self.name(parent, name, number);
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let found = match self.find_parent(target)? {
            Some((parent, name)) => self.child(parent, &name),
            None if target.is_empty() => Some(ROOT),
            None => None,
        };
        let of = |make: fn(String, String) -> TreeError| make(lossy(path), lossy(target));
        let number = found.ok_or_else(|| of(|path, target| TreeError::NoTarget { path, target }))?;
        if self.is_directory(number) {
            return Err(of(|path, target| TreeError::DirectoryTarget { path, target }));
        }
        let time = self.inodes[number].meta.mtime;
        let (parent, name) = self.make_parent(path, time)?.ok_or(TreeError::Root)?;
        self.name(parent, name, number);
        Ok(())
    }

    /// Removes a name with all that is below it, if it is there.
    fn remove(&mut self, path: &[u8]) -> Result<(), TreeError> {
        if let Some((parent, name)) = self.find_parent(path)?
            && let Node::Directory(names) = &mut self.inodes[parent].node
        {
            names.remove(&name);
        }
        Ok(())
    }

    /// Removes all that is in a directory, if it is there.
    fn empty(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let found = match self.find_parent(path)? {
            Some((parent, name)) => self.child(parent, &name),
            None if path.is_empty() => Some(ROOT),
            None => None,
        };
        if let Some(number) = found
            && let Node::Directory(names) = &mut self.inodes[number].node
        {
            names.clear();
        }
        Ok(())
    }

    fn add(&mut self, inode: Inode) -> Result<Number, TreeError> {
        if self.inodes.len() >= self.limit {
            return Err(TreeError::Inodes(self.limit));
        }
        self.inodes.push(inode);
        Ok(self.inodes.len() - 1)
    }

    fn name(&mut self, parent: Number, name: Vec<u8>, number: Number) {
        if let Node::Directory(names) = &mut self.inodes[parent].node {
            names.insert(name, number);
        }
    }

    fn child(&self, parent: Number, name: &[u8]) -> Option<Number> {
        match &self.inodes[parent].node {
            Node::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, number: Number) -> bool {
        matches!(self.inodes[number].node, Node::Directory(_))
    }

    /// The directory in which a path's last component is, and that component; directories on the way are made. None
    /// for the root.
    fn make_parent(&mut self, path: &[u8], time: i64) -> Result<Option<(Number, Vec<u8>)>, TreeError> {
        let Some((parent, name)) = split(path) else {
            return Ok(None);
        };
        let walked = Walk::new(path, parent).run(self, make(time))?;
        match walked {
            Some(number) if !self.is_directory(number) => Err(not_a_directory(path, parent)),
            walked => Ok(walked.map(|number| (number, name.to_vec()))),
        }
    }

    /// The same without making anything: none if a directory on the way is not there.
    fn find_parent(&mut self, path: &[u8]) -> Result<Option<(Number, Vec<u8>)>, TreeError> {
        let Some((parent, name)) = split(path) else {
            return Ok(None);
        };
        let found = Walk::new(path, parent).run(self, |_, _, _| Ok(None));
        match found {
            Ok(found) => Ok(found
                .filter(|number| self.is_directory(*number))
                .map(|number| (number, name.to_vec()))),
            Err(TreeError::NotADirectory { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that there is something under a path: a directory, if nothing is there.
    ///
    /// # Errors
    /// Something on the way to it is not a directory.
    pub fn make_directory(&mut self, path: &[u8]) -> Result<(), TreeError> {
        Walk::new(path, path).run(self, make(0)).map(drop)
    }

    /// The contents of the regular file that a process in the root would open under this path, with their layer.
    ///
    /// # Errors
    /// There are too many symbolic links on the way to it.
    pub fn file(&mut self, path: &[u8]) -> Result<Option<(u16, &Content)>, TreeError> {
        let found = match Walk::new(path, path).run(self, |_, _, _| Ok(None)) {
            Ok(found) => found,
            Err(TreeError::NotADirectory { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(found.and_then(|number| match &self.inodes[number].node {
            Node::File { layer, content } => Some((*layer, content)),
            _ => None,
        }))
    }

    /// All inodes that a name leads to, directories before what is in them, what is in one directory together; with
    /// each the number of its names.
    #[must_use]
    pub fn walk(&self) -> (Vec<Number>, BTreeMap<Number, u32>) {
        let mut order = vec![ROOT];
        let mut links = BTreeMap::from([(ROOT, 2)]);
        let mut next = 0;
        while let Some(number) = order.get(next).copied() {
            next += 1;
            let Node::Directory(names) = &self.inodes[number].node else {
                continue;
            };
            for child in names.values().copied() {
                let is_directory = self.is_directory(child);
                match links.entry(child) {
                    btree_map::Entry::Vacant(entry) => {
                        entry.insert(if is_directory { 2 } else { 1 });
                        order.push(child);
                    }
                    btree_map::Entry::Occupied(entry) => *entry.into_mut() += 1,
                }
                if is_directory && let Some(links) = links.get_mut(&number) {
                    *links += 1;
                }
            }
        }
        (order, links)
    }
}

/// A path's last component and what is before it.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    })
}

/// Makes the directories that a walk does not find.
fn make(time: i64) -> impl Fn(&mut Tree, Number, &[u8]) -> Result<Option<Number>, TreeError> {
    move |tree, parent, name| {
        let meta = Meta {
            mode: MODE,
            mtime: time,
            ..Meta::default()
        };
        let node = Node::Directory(BTreeMap::new());
        let number = tree.add(Inode { meta, node })?;
        tree.name(parent, name.to_vec(), number);
        Ok(Some(number))
    }
}

/// A way from the root along components and symbolic links.
struct Walk<'a> {
    /// What is looked for, for errors.
    goal: &'a [u8],
    /// Components that are still to be walked, the next one last.
    pending: Vec<Vec<u8>>,
    /// The directories from the root to where the walk is.
    place: Vec<Number>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(goal: &'a [u8], path: &[u8]) -> Self {
        let mut walk = Self {
            goal,
            pending: Vec::new(),
            place: vec![ROOT],
            links: 0,
        };
        walk.push(path);
        walk
    }

    fn push(&mut self, path: &[u8]) {
        self.pending
            .extend(path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
    }

    /// Walks to the end; `missing` says what to do about a name that is not there.
    fn run(
        mut self,
        tree: &mut Tree,
        missing: impl Fn(&mut Tree, Number, &[u8]) -> Result<Option<Number>, TreeError>,
    ) -> Result<Option<Number>, TreeError> {
        while let Some(name) = self.pending.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if self.place.len() > 1 {
                        self.place.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let here = self.place.last().copied().unwrap_or(ROOT);
            let next = match tree.child(here, &name) {
                Some(next) => next,
                None => match missing(tree, here, &name)? {
                    Some(next) => next,
                    None => return Ok(None),
                },
            };
            match &tree.inodes[next].node {
                Node::Symlink(target) => {
                    self.links += 1;
                    if self.links > MAX_LINKS {
                        return Err(TreeError::Loop(lossy(self.goal)));
                    }
                    if target.starts_with(b"/") {
                        self.place.truncate(1);
                    }
                    let target = target.clone();
                    self.push(&target);
                }
                Node::Directory(_) => self.place.push(next),
                _ if self.pending.is_empty() => self.place.push(next),
                _ => return Err(not_a_directory(self.goal, &name)),
            }
        }
        let end = self.place.last().copied().unwrap_or(ROOT);
        Ok(Some(end))
    }
}

fn not_a_directory(path: &[u8], parent: &[u8]) -> TreeError {
    TreeError::NotADirectory {
        path: lossy(path),
        parent: lossy(parent),
    }
}

#[cfg(test)]
mod tests;
