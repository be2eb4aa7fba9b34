//! A real distribution doing real work.

use husk_tests::{Host, debian};

/// One fact a line; each is a piece of work whose right result is known.
const WORK: &str = r#"
import hashlib, json, os, platform, queue, socket, sqlite3, subprocess, sys, tempfile, threading, zlib

def fact(name, value):
    print(f"{name}={value}", flush=True)

fact("json", json.loads(json.dumps({"list": [1, 2.5, None, "ä"]}))["list"][3])
fact("sha256", hashlib.sha256(b"husk" * 1_000_000).hexdigest())
fact("crc", zlib.crc32(zlib.decompress(zlib.compress(b"abc" * 100_000))))

database = sqlite3.connect(os.path.join(tempfile.mkdtemp(), "work.db"))
database.execute("create table numbers (n integer primary key, square integer)")
with database:
    database.executemany("insert into numbers values (?, ?)", ((n, n * n) for n in range(20_000)))
fact("sqlite", database.execute("select sum(square) from numbers where n % 7 = 0").fetchone()[0])
fact("integrity", database.execute("pragma integrity_check").fetchone()[0])

fact("subprocess", subprocess.run(["sh", "-c", "seq 1 1000 | sort -rn | head -1"], capture_output=True, text=True).stdout.strip())

results = queue.Queue()
threads = [threading.Thread(target=lambda n=n: results.put(sum(range(n * 1000)))) for n in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
fact("threads", sum(results.get() for _ in threads))

server = socket.create_server(("127.0.0.1", 0))
def serve():
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(65536): connection.sendall(data)
threading.Thread(target=serve, daemon=True).start()
client = socket.create_connection(server.getsockname())
sender = threading.Thread(target=lambda: (client.sendall(b"x" * 3_000_000), client.shutdown(socket.SHUT_WR)))
sender.start()
received = 0
while data := client.recv(65536): received += len(data)
sender.join()
fact("loopback", received)
fact("ipv6", socket.create_server(("::1", 0), family=socket.AF_INET6).getsockname()[0])

with tempfile.TemporaryDirectory() as directory:
    for n in range(500):
        with open(os.path.join(directory, str(n)), "wb") as file: file.write(os.urandom(5000))
    fact("files", sum(os.path.getsize(os.path.join(directory, name)) for name in os.listdir(directory)))
    os.symlink("0", os.path.join(directory, "link")); os.link(os.path.join(directory, "1"), os.path.join(directory, "hard"))
    fact("links", os.path.samefile(os.path.join(directory, "hard"), os.path.join(directory, "1")))

# Over what the image holds: changed, removed and renamed in the layer above it.
with open("/etc/debian_version", "a") as file: file.write("changed\n")
os.remove("/etc/issue"); os.rename("/etc/hostname", "/etc/hostname.old") if os.path.exists("/etc/hostname") else None
fact("overlay", open("/etc/debian_version").read().endswith("changed\n") and not os.path.exists("/etc/issue"))
fact("system", platform.system())
sys.exit(23)
"#;

#[test]
fn python_works_in_a_debian() {
    let host = Host::new();
    let packages = debian().join("var/lib/dpkg/status");
    let count = std::fs::read_to_string(packages)
        .expect("dpkg's status")
        .matches("\nStatus: install ok")
        .count();
    // The program comes through stdin, as a person pipes one.
    let script = "echo packages=$(dpkg -l | grep -c '^ii'); . /etc/os-release; echo id=$ID; exec python3 -";
    let outcome = host
        .husk()
        .rootfs(debian())
        .memory("512M")
        .input(WORK)
        .run(["bash", "-c", script]);
    outcome.exits(23).is_quiet();
    outcome
        .states("packages", &count.to_string())
        .states("id", "debian")
        .states("system", "Linux");
    outcome.states("json", "ä").states("crc", "1910677676");
    outcome.states(
        "sha256",
        "3d63f45071f9e36cab89905201f7391e463001753787c2f8acc38c6978181d2c",
    );
    outcome
        .states("sqlite", "381095244285")
        .states("integrity", "ok")
        .states("subprocess", "1000");
    outcome
        .states("threads", "619940000")
        .states("loopback", "3000000")
        .states("ipv6", "::1");
    outcome
        .states("files", "2500000")
        .states("links", "True")
        .states("overlay", "True");
}
