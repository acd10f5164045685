//! What the tests of the built-in network share: a network of the test's own, in a network namespace of its own.
#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use berth_network::{AttachRequest, Attachment, Builtin as Network, Config};
use berth_state::Ledger;
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::gettid,
};

/// Longer than anything here takes on a machine under load.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// For what must not come.
pub const MOMENT: Duration = Duration::from_millis(300);

pub fn random() -> u64 {
    RandomState::new().hash_one(0u8)
}

pub fn pod_id() -> String {
    (0..4).map(|_| format!("{:016x}", random())).collect()
}

/// A pod that asks for nothing but an address.
pub fn request(pod_id: &str) -> AttachRequest {
    AttachRequest {
        pod_id: pod_id.to_owned(),
        ..AttachRequest::default()
    }
}

/// A network of the test's own, whose host is a network namespace of the test's thread: nothing touches the machine's. Dropped, it asserts
/// that nothing of it is left in the kernel or on the disk.
pub struct Wharf {
    pub dir: tempfile::TempDir,
    pub config: Config,
    switches: Vec<String>,
}

impl Wharf {
    pub fn new(prefix_len: u8) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip_command(&["link", "set", "lo", "up"]);
        // A namespace begins with what the machine's own has (net.core.devconf_inherit_init_net).
        for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(Path::new("/proc/sys/net").join(path), "0").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            bridge: "bt0".into(),
            subnet: ipnet::Ipv4Net::new(Ipv4Addr::new(10, 201, 7, 0), prefix_len).unwrap(),
            subnet_v6: None,
            masquerade: true,
            namespace_pool: 0,
            mtu: None,
            netns_dir: dir.path().join("netns"),
            lease_dir: dir.path().join("leases"),
        };
        Self {
            dir,
            config,
            switches: switches(),
        }
    }

    pub fn dual_stack() -> Self {
        let mut wharf = Self::new(24);
        wharf.config.subnet_v6 = Some("fd07:201::/64".parse().unwrap());
        wharf
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::open(&self.dir.path().join("ledger")).unwrap()
    }

    /// As a daemon that starts.
    pub fn network(&self) -> Network {
        Network::open(self.config.clone(), self.ledger()).unwrap()
    }

    /// Another process on the same directories.
    pub fn child(&self, failpoints: &str, operations: &[&str]) -> Output {
        Command::new(example())
            .arg(self.dir.path())
            .arg(&self.config.bridge)
            .arg(self.config.subnet.to_string())
            .args(operations)
            .env("FAILPOINTS", failpoints)
            .output()
            .unwrap()
    }

    pub fn table(&self) -> String {
        format!("berth-{}", self.config.bridge)
    }

    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for owner in self.ledger().owners().unwrap() {
            left.push(format!(
                "ledger of {owner}: {:?}",
                self.ledger().outstanding(&owner).unwrap()
            ));
        }
        for dir in [&self.config.netns_dir, &self.config.lease_dir] {
            left.extend(
                fs::read_dir(dir)
                    .into_iter()
                    .flatten()
                    .map(|entry| entry.unwrap().path().display().to_string()),
            );
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(self.dir.path().to_str().unwrap()))
                .map(str::to_owned),
        );
        if link_exists(&self.config.bridge) {
            left.push(self.config.bridge.clone());
        }
        left.extend(
            ruleset()
                .lines()
                .filter(|line| line.contains(&self.table()))
                .map(str::to_owned),
        );
        left.extend(
            switches()
                .into_iter()
                .filter(|switch| !self.switches.contains(switch))
                .map(|switch| format!("changed: {switch}")),
        );
        left
    }
}

impl Drop for Wharf {
    fn drop(&mut self) {
        if thread::panicking() {
            // The namespace goes with the thread; the pins would keep theirs.
            for entry in fs::read_dir(&self.config.netns_dir)
                .into_iter()
                .flatten()
                .flatten()
            {
                let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
                let _ = fs::remove_file(entry.path());
            }
            return;
        }
        assert_eq!(self.left(), Vec::<String>::new());
    }
}

/// What a network may turn on, and must leave as it was: the host's forwarding.
fn switches() -> Vec<String> {
    let mut switches = Vec::new();
    for (family, keys) in [
        ("ipv4", &["forwarding", "route_localnet"][..]),
        ("ipv6", &["forwarding", "force_forwarding"][..]),
    ] {
        let conf = format!("/proc/thread-self/root/proc/sys/net/{family}/conf");
        for link in fs::read_dir(conf).into_iter().flatten().flatten() {
            for key in keys {
                let path = link.path().join(key);
                if let Ok(value) = fs::read_to_string(&path)
                    && value.trim() != "0"
                {
                    switches.push(path.display().to_string());
                }
            }
        }
    }
    switches
}

/// As nft lists it.
pub fn ruleset() -> String {
    let output = Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn nft(arguments: &[&str]) {
    let output = Command::new("nft").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

pub fn example() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let built = deps
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/attach");
    assert!(
        built.exists(),
        "{} is not built: run the tests of the whole crate",
        built.display()
    );
    built
}

/// In the thread's namespace. (/sys/class/net is of the one that sysfs was mounted in.)
pub fn link_exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

/// Waits for what the kernel or a worker does in its own time.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(since.elapsed() < PATIENCE, "still not: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

pub fn inside<T: Send>(netns: &Path, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(fs::File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                act()
            })
            .join()
            .unwrap()
    })
}

pub fn placed<T: Send>(netns: Option<&Path>, act: impl FnOnce() -> T + Send) -> T {
    match netns {
        Some(netns) => inside(netns, act),
        None => act(),
    }
}

/// iproute2, as another program on the host.
pub fn ip_command(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

pub fn ip(attachment: &Attachment) -> IpAddr {
    attachment.ips[0]
}

/// Another machine on a wire to the host: 192.0.2.1 and fd07:2::1 are the host's, 192.0.2.2 and fd07:2::2 its own.
pub struct Outside {
    pub netns: PathBuf,
    _end: mpsc::Sender<()>,
}

pub const HOST: &str = "192.0.2.1";
pub const HOST_V6: &str = "fd07:2::1";
pub const OUTSIDE: &str = "192.0.2.2";
pub const OUTSIDE_V6: &str = "fd07:2::2";

impl Outside {
    pub fn new() -> Self {
        let (told, tid) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            told.send(gettid()).unwrap();
            let _ = ended.recv();
        });
        let tid = tid.recv().unwrap().to_string();
        let netns = PathBuf::from(format!("/proc/self/task/{tid}/ns/net"));
        ip_command(&[
            "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", &tid,
        ]);
        let address = |link: &str, address: &str| {
            ip_command(&["address", "add", address, "dev", link]);
        };
        let address_v6 = |link: &str, address: &str| {
            ip_command(&["address", "add", address, "dev", link, "nodad"]);
        };
        address("up0", &format!("{HOST}/24"));
        address_v6("up0", &format!("{HOST_V6}/64"));
        ip_command(&["link", "set", "up0", "up"]);
        inside(&netns, || {
            address("out0", &format!("{OUTSIDE}/24"));
            address_v6("out0", &format!("{OUTSIDE_V6}/64"));
            ip_command(&["link", "set", "lo", "up"]);
            ip_command(&["link", "set", "out0", "up"]);
        });
        ip_command(&["route", "add", "default", "via", OUTSIDE]);
        ip_command(&["-6", "route", "add", "default", "via", OUTSIDE_V6]);
        Self { netns, _end: end }
    }
}

/// A server in `at` (the host, where none) answers a client in `from`, which says where it saw the client.
pub fn talk(at: Option<&Path>, address: IpAddr, from: Option<&Path>) -> IpAddr {
    let listener = placed(at, || TcpListener::bind((address, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let server = serve(listener);
    let answer = ask(from, to).unwrap();
    server.join().unwrap();
    answer
}

/// Answers one client with the address that it has here.
pub fn serve(listener: TcpListener) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
    })
}

/// What a server at `to` answers: the address that it saw the client at.
pub fn ask(from: Option<&Path>, to: SocketAddr) -> std::io::Result<IpAddr> {
    placed(from, || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answer
            .parse()
            .map_err(|_| std::io::Error::other(format!("answer {answer:?}")))
    })
}

/// A server of UDP that answers each datagram with its name until it is dropped.
pub struct Echo {
    end: mpsc::Sender<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    pub fn new(at: Option<&Path>, address: SocketAddr, name: &str) -> Self {
        let socket = placed(at, || UdpSocket::bind(address).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let name = name.to_owned();
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            while matches!(ended.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(name.as_bytes(), peer);
                }
            }
        });
        Self {
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.end.send(());
        let _ = self.thread.take().unwrap().join();
    }
}

/// What answers to a datagram of `socket`, if anything does until `patience` ends.
pub fn ping(socket: &UdpSocket, to: SocketAddr, patience: Duration) -> Option<String> {
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(b"?", to).ok()?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
