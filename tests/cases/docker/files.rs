//! What docker does to a container's files on the host. husk's containers have theirs in the guest.

use std::fs;

use super::{Peer, WAITS, each};

#[test]
fn files_on_the_host_are_not_the_guests() {
    each(|peer| {
        let id = peer.detached(&[], "box", WAITS);
        peer.exec("box", "echo mine > /changed").exits(0);
        into_a_container(peer);
        out_of_a_container(peer, &id);
        differences(peer);
        peer.docker.run(["restart", "--timeout=60", "box"]).exits(0);
        // What docker has put beside the guest is in the image that the next start makes; what the guest has changed is gone.
        let told = peer.exec("box", "cat /copied; ls /changed");
        match peer.is_husk() {
            true => told.exits(1).prints("copied\n"),
            false => told.exits(0).prints("copied\n/changed\n"),
        };
        peer.remove(&["box"]);
    });
}

fn into_a_container(peer: &Peer<'_>) {
    let file = peer.docker.host().scratch().join("file");
    fs::write(&file, "copied\n").unwrap();
    peer.docker.run(["cp", file.to_str().unwrap(), "box:/copied"]).exits(0);
    let told = peer.exec("box", "cat /copied");
    match peer.is_husk() {
        true => told.exits(1).mentions(&["no such file"]),
        false => told.exits(0).prints("copied\n"),
    };
}

fn out_of_a_container(peer: &Peer<'_>, id: &str) {
    let host = peer.docker.host();
    let target = host.scratch().join(format!("from-{}", peer.runtime));
    let copied = peer.docker.run(["cp", "box:/changed", target.to_str().unwrap()]);
    if peer.is_husk() {
        copied.exits(1).mentions(&["Could not find the file /changed"]);
        // husk's own command finds it.
        let root = host.run_directory().join("containerd/moby");
        let from = format!("{id}:/changed");
        let words = ["--root", root.to_str().unwrap(), "cp", &from, target.to_str().unwrap()];
        host.husk().command(words).exits(0);
    } else {
        copied.exits(0);
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine\n");
}

fn differences(peer: &Peer<'_>) {
    let diff = peer.docker.run(["diff", "box"]);
    let lines: Vec<_> = diff.exits(0).stdout().lines().collect();
    let has = |line| lines.contains(&line);
    assert_eq!((has("A /copied"), has("A /changed")), (true, !peer.is_husk()), "{diff}");
    peer.docker.run(["commit", "box", "committed"]).exits(0);
    let words = [
        "run",
        "--rm",
        "--network=none",
        "--runtime",
        peer.runtime,
        "committed",
        "cat",
        "/changed",
    ];
    let told = peer.docker.run(words);
    match peer.is_husk() {
        true => told.exits(1).mentions(&["no such file"]),
        false => told.exits(0).prints("mine\n"),
    };
    peer.docker.run(["image", "rm", "committed"]).exits(0);
}
