//! A container's files for the host.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

use husk_archive::tar::{Member, Reader, Type, Writer};
use husk_protocol::agent::{FileAnswer, FileRequest, FilesRequest, KillRequest, file_answer, file_request};
use husk_protocol::frames::{ArchiveReader, ArchiveWriter, receive, send};

use super::guest::{Guest, container, context, create, run_shell, shell};
use super::users::{self, mapped};

/// A way to the files of a container.
fn open(guest: &Guest, container: &str) -> Result<UnixStream, ttrpc::Error> {
    let (stream, token) = guest.stream();
    let request = FilesRequest {
        container: container.to_owned(),
        stream: token,
        ..FilesRequest::default()
    };
    guest.client.files(context(), &request).map(|_| stream)
}

fn request(kind: file_request::Kind, path: &str) -> FileRequest {
    FileRequest {
        kind: kind.into(),
        path: path.as_bytes().to_vec(),
        ..FileRequest::default()
    }
}

fn answer(stream: &mut UnixStream) -> FileAnswer {
    receive(stream).unwrap().unwrap()
}

/// Writes a file of user 7 and group 8.
fn write(stream: &mut UnixStream, directory: &str, name: &str, owners: bool) -> FileAnswer {
    let request = FileRequest {
        owners,
        ..request(file_request::Kind::WRITE, directory)
    };
    send(stream, &request).unwrap();
    let mut archive = ArchiveWriter::new(&*stream);
    let mut writer = Writer::new(&mut archive);
    let member = Member {
        path: name.as_bytes().to_vec(),
        link: Vec::new(),
        kind: Type::File,
        mode: 0o640,
        uid: 7,
        gid: 8,
        mtime: 1_000_000_000,
        mtime_ns: 0,
        major: 0,
        minor: 0,
        size: 3,
        xattrs: Vec::new(),
        sparse: None,
    };
    writer.member(&member).unwrap();
    writer.contents(b"abc").unwrap();
    writer.end_contents().unwrap();
    writer.finish().unwrap();
    archive.end().unwrap();
    answer(stream)
}

/// Reads what lies at a path; gives the first member.
fn read(stream: &mut UnixStream, path: &str) -> (Option<Member>, FileAnswer) {
    let request = FileRequest {
        name: b"x".to_vec(),
        follow: true,
        ..request(file_request::Kind::READ, path)
    };
    send(stream, &request).unwrap();
    let mut archive = ArchiveReader::new(&*stream);
    let member = Reader::new(&mut archive).next().unwrap();
    archive.end().unwrap();
    (member, answer(stream))
}

#[test]
fn files_are_looked_at_written_and_read_below_the_containers_root() {
    let Some(guest) = Guest::start() else { return };
    let script = "ln -s ../../../../../tmp/secret /tmp/up; exec sleep 1000";
    assert_eq!(create(&guest, &container("box", shell(script))), None);
    // The process waits to be started, and its root is complete.
    let mut stream = open(&guest, "box").unwrap();
    assert_eq!(write(&mut stream, "/tmp", "made", false), FileAnswer::default());
    let (member, said) = read(&mut stream, "../../tmp/made");
    let member = member.unwrap();
    assert_eq!(said, FileAnswer::default());
    assert_eq!((member.uid, member.gid, member.size, member.mode), (0, 0, 3, 0o640));
    assert_eq!(write(&mut stream, "/tmp", "kept", true), FileAnswer::default());
    assert_eq!(read(&mut stream, "/tmp/kept").0.unwrap().uid, 7);
    let said = write(&mut stream, "/tmp", "../outside", false);
    assert!(said.error.contains("lies outside"), "{said:?}");
    let (member, said) = read(&mut stream, "/missing");
    assert!(member.is_none() && said.error.contains("/missing"), "{said:?}");
    // This machine's own files are not the container's.
    send(
        &mut stream,
        &request(file_request::Kind::LOOK, "/../../../../proc/1/root/home/x"),
    )
    .unwrap();
    assert!(
        answer(&mut stream).error.contains("/proc/1/root"),
        "magic links are not followed"
    );
    guest.start_process("box", "");
    let kill = KillRequest {
        container: "box".to_owned(),
        signal: 9,
        ..KillRequest::default()
    };
    guest.client.kill(context(), &kill).unwrap();
    guest.wait("box", "");
    // With the container ends what serves its files.
    match stream.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert!(open(&guest, "box").is_err() && open(&guest, "nobody").is_err());
    assert_eq!(run_shell(&guest, "echo on").1, "on\n", "the agent goes on");
}

#[test]
fn owners_are_those_of_the_user_namespace() {
    let Some(guest) = users::guest() else { return };
    assert_eq!(
        create(&guest, &mapped(shell("stat -c %u:%g /tmp/plain /tmp/kept"))),
        None
    );
    let mut stream = open(&guest, "mapped").unwrap();
    for (name, owners, uid) in [("plain", false, 0), ("kept", true, 7)] {
        assert_eq!(write(&mut stream, "/tmp", name, owners), FileAnswer::default());
        let member = read(&mut stream, &format!("/tmp/{name}")).0.unwrap();
        assert_eq!((member.uid, member.size), (uid, 3));
    }
    send(&mut stream, &request(file_request::Kind::LOOK, "/tmp/kept")).unwrap();
    assert_eq!(answer(&mut stream).kind, file_answer::Kind::FILE.into());
}
