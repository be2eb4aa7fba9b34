//! What a runtime's shim does when containerd or the shim itself is killed.

use husk_tests::Release;

use super::{Peer, cases};

cases! {
    containerd_is_killed,
    a_task_ends_without_containerd,
    the_shim_is_killed,
}

fn containerd_is_killed(peer: &mut Peer<'_>) {
    peer.detached(
        "box",
        "trap 'exit 9' TERM; touch /ready; while :; do sleep 1000 & wait; done",
    );
    peer.await_file("box", "/ready");
    peer.containerd.crash();
    peer.containerd.restart();
    peer.task(&["list"]).exits(0).says("RUNNING");
    peer.exec("box", "e", &["sh", "-c", "echo inside; exit 5"])
        .exits(5)
        .prints("inside\n");
    let mut events = peer.containerd.events();
    peer.task(&["kill", "box"]).exits(0);
    assert_eq!(events.until_end("box"), 9);
    peer.task(&["delete", "box"]).exits(0).mentions(&["exit code 9"]);
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

fn a_task_ends_without_containerd(peer: &mut Peer<'_>) {
    peer.detached("box", "sleep 2; exit 7");
    peer.containerd.crash();
    // Nobody is there to tell of its end. If it has not ended by then, containerd sees it end, which is as well.
    std::thread::sleep(std::time::Duration::from_secs(8));
    peer.containerd.restart();
    // containerd 1.7 and later clean a shim away that names no process, which runc's does when its own has ended.
    if !(peer.is_runc() && peer.release == Release::Built) {
        peer.task(&["delete", "box"]).exits(0).mentions(&["exit code 7"]);
    }
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}

fn the_shim_is_killed(peer: &mut Peer<'_>) {
    let mut events = peer.containerd.events();
    peer.detached("box", "sleep 1000");
    peer.containerd.shim("box").kill();
    assert_eq!(events.until_end("box"), 137);
    events.until("box", |event| event.topic == "delete");
    peer.task(&["list", "-q"]).exits(0).prints("");
    peer.containerd.run(["containers", "delete", "box"]).exits(0);
}
