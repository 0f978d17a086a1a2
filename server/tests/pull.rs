//! Models from a hub: a stub with good and bad manners, and the binary as a user meets it.

mod hub_stub;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use hub_stub::{Asked, COMMIT, Reply, Stub, bytes, listing, sha256};

/// A user with a home of their own.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("hub")
    }

    fn blobs(&self) -> PathBuf {
        self.cache().join("models--org--name/blobs")
    }

    fn command(&self, endpoint: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.0.path())
            .env("HF_HUB_CACHE", self.cache())
            .env("HF_ENDPOINT", endpoint)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, endpoint: &str, arguments: &[&str]) -> Output {
        self.command(endpoint, arguments).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn fails(output: &Output, message: &str) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(message), "{message:?} in {errors}");
    assert_eq!(text(&output.stdout), "");
}

/// A well-mannered hub with these files.
fn hub(files: &'static [(&'static str, &'static [u8])]) -> Stub {
    Stub::start(move |asked| answer(asked, files))
}

fn answer(asked: &Asked, files: &[(&str, &[u8])]) -> Reply {
    if asked.path.starts_with("/api/models/org/name/revision/main") {
        return Reply::new(200, listing(files));
    }
    let path = asked.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")).unwrap_or_default();
    match files.iter().find(|(name, _)| *name == path) {
        Some((_, content)) => bytes(asked, content),
        None => Reply::new(404, ""),
    }
}

const SMALL: &[u8] = b"not a model, but nobody looks inside while it is fetched";
const FILES: &[(&str, &[u8])] = &[
    ("name-Q4_K_M.gguf", SMALL),
    ("name-Q8_0.gguf", b"larger"),
    ("README.md", b"read me"),
    ("config.json", b"{}"),
];

#[test]
fn a_model_lands_in_the_layout_that_others_read() {
    let (home, hub) = (Home::new(), hub(FILES));
    let path = succeeds(&home.run(&hub.address, &["pull", "org/name"]));
    let expected = home.cache().join(format!("models--org--name/snapshots/{COMMIT}/name-Q4_K_M.gguf"));
    assert_eq!(path.trim_end(), expected.to_str().unwrap());
    let target = std::fs::read_link(&expected).unwrap();
    assert_eq!(target, Path::new("../../blobs").join(sha256(SMALL)));
    assert_eq!(std::fs::read(&expected).unwrap(), SMALL);
    assert_eq!(std::fs::read_to_string(home.cache().join("models--org--name/refs/main")).unwrap(), COMMIT);
    // Again: only the list is asked for.
    let before = hub.asked().len();
    let json = succeeds(&home.run(&hub.address, &["pull", "org/name:q4_k_m", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["files_fetched"], &json["bytes"]), (&0.into(), &SMALL.len().into()));
    assert_eq!(hub.asked().len(), before + 1);
    // Listed with its name, without a look inside; checked where asked; removed by name.
    let listed = succeeds(&home.run("", &["list", "--json"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["bytes"]), (&"org/name:Q4_K_M".into(), &SMALL.len().into()));
    assert!(succeeds(&home.run("", &["list", "--verify"])).contains("intact"));
    std::fs::write(home.blobs().join(sha256(SMALL)), b"changed").unwrap();
    let damaged = home.run("", &["list", "--verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(text(&damaged.stderr).contains("org/name:Q4_K_M"));
    succeeds(&home.run("", &["rm", "org/name:Q4_K_M"]));
    assert!(!home.cache().join("models--org--name").exists());
    fails(&home.run("", &["rm", "org/name"]), "org/name");
}

#[test]
fn a_model_of_the_hub_runs_by_name_and_offline_once_it_is_there() {
    const MODEL: &[u8] = include_bytes!("../assets/delta-48m-Q4_K_M.gguf");
    let (home, hub) = (Home::new(), hub(&[("name-Q4_K_M.gguf", MODEL)]));
    fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["run", "-p", "The king", "-n", "4", "--temp", "0"], more].concat()
    }
    fails(&home.run(&hub.address, &with(&["-hf", "org/name", "--offline"])), "--offline");
    assert_eq!(hub.asked().len(), 0);
    let first = succeeds(&home.run(&hub.address, &with(&["-hf", "org/name:Q4_K_M"])));
    let asked = hub.asked().len();
    for more in [&["-hf", "org/name"][..], &["-hf", "org/name", "--offline"], &["-m", "org/name:Q4_K_M"]] {
        assert_eq!(succeeds(&home.run("http://127.0.0.1:9", &with(more))), first);
    }
    assert_eq!(hub.asked().len(), asked);
    assert_eq!(first, succeeds(&home.run("", &with(&[]))), "the built-in model is the same");
}

#[test]
fn a_broken_connection_is_picked_up_where_it_broke() {
    let home = Home::new();
    let tries = AtomicUsize::new(0);
    let hub = Stub::start(move |asked| {
        let whole = answer(asked, FILES);
        if asked.path.starts_with("/api") || tries.fetch_add(1, Ordering::SeqCst) > 0 {
            return whole;
        }
        Reply { length: Some(SMALL.len()), body: SMALL[..20].to_vec(), ..whole }
    });
    let path = succeeds(&home.run(&hub.address, &["pull", "org/name"]));
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), SMALL);
    let ranges: Vec<Option<String>> =
        hub.asked()[1..].iter().map(|asked| asked.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=20-".to_owned())]);
}

#[test]
fn a_download_that_fails_is_kept_for_the_next() {
    let home = Home::new();
    let broken = Stub::start(|asked| {
        let whole = answer(asked, FILES);
        match asked.path.starts_with("/api") || asked.headers.contains_key("range") {
            true if !asked.path.starts_with("/api") => Reply::new(503, "").with("retry-after", "0"),
            true => whole,
            false => Reply { length: Some(SMALL.len()), body: SMALL[..30].to_vec(), ..whole },
        }
    });
    fails(&home.run(&broken.address, &["pull", "org/name"]), "503");
    assert!(!home.blobs().join(sha256(SMALL)).exists());
    let left = std::fs::read(home.blobs().join(format!("{}.incomplete", sha256(SMALL)))).unwrap();
    assert_eq!(left, &SMALL[..30]);
    assert!(!succeeds(&home.run("", &["list"])).contains("org/name"), "half a model is none");
    let hub = hub(FILES);
    let path = succeeds(&home.run(&hub.address, &["pull", "org/name"]));
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), SMALL);
    assert_eq!(hub.asked()[1].headers["range"], "bytes=30-");
}

#[test]
fn a_server_that_ignores_ranges_starts_over() {
    let home = Home::new();
    std::fs::create_dir_all(home.blobs()).unwrap();
    std::fs::write(home.blobs().join(format!("{}.incomplete", sha256(SMALL))), &SMALL[..10]).unwrap();
    let hub = Stub::start(|asked| {
        let whole = Asked { headers: Default::default(), ..asked.clone() };
        answer(&whole, FILES)
    });
    let path = succeeds(&home.run(&hub.address, &["pull", "org/name"]));
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), SMALL);
    // And one that answers with another part than was asked for.
    let home = Home::new();
    std::fs::create_dir_all(home.blobs()).unwrap();
    std::fs::write(home.blobs().join(format!("{}.incomplete", sha256(SMALL))), &SMALL[..10]).unwrap();
    let hub = Stub::start(|asked| match asked.headers.get("range") {
        Some(_) => Reply::new(206, &SMALL[3..])
            .with("content-range", format!("bytes 3-{}/{}", SMALL.len() - 1, SMALL.len())),
        None => answer(asked, FILES),
    });
    let path = succeeds(&home.run(&hub.address, &["pull", "org/name"]));
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), SMALL);
}

#[test]
fn what_is_not_what_was_announced_is_thrown_away() {
    for (body, message) in [
        (SMALL.iter().rev().copied().collect::<Vec<u8>>(), "SHA-256"),
        ([SMALL, b"and more"].concat(), "more than the"),
    ] {
        let home = Home::new();
        let hub = Stub::start(move |asked| match asked.path.starts_with("/api") {
            true => answer(asked, FILES),
            false => Reply::new(200, body.clone()),
        });
        fails(&home.run(&hub.address, &["pull", "org/name"]), message);
        let left: Vec<u64> = std::fs::read_dir(home.blobs())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert!(left.iter().all(|&bytes| bytes == 0), "{left:?}");
        assert!(!home.cache().join("models--org--name/snapshots").exists());
    }
}

#[test]
fn redirects_lead_to_allowed_hosts_only_and_never_with_the_token() {
    let files = Stub::start(|_| Reply::new(200, SMALL));
    let target = files.address.clone();
    let hub = Stub::start(move |asked| match asked.path.starts_with("/api") {
        true => answer(asked, FILES),
        false => Reply::new(302, "").with("location", format!("{target}/signed?secret=1")),
    });
    let home = Home::new();
    let pull = |arguments: &[&str]| {
        let mut command = home.command(&hub.address, &[&["pull", "org/name"], arguments].concat());
        command.env("HF_TOKEN", "hf_sesame").output().unwrap()
    };
    let refused = pull(&[]);
    fails(&refused, &files.host());
    assert!(!text(&refused.stderr).contains("secret"), "signed addresses stay secret");
    assert_eq!(files.asked().len(), 0, "the foreign host was never asked");
    let path = succeeds(&pull(&["--hub-hosts", &files.host()]));
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), SMALL);
    assert!(hub.asked().iter().all(|asked| asked.headers["authorization"] == "Bearer hf_sesame"));
    assert!(files.asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
    assert_eq!(files.asked().len(), 1);
}

#[test]
fn redirects_end() {
    let hub = Stub::start(|asked| match asked.path.starts_with("/api") {
        true => Reply::new(307, "").with("location", asked.path.clone()),
        false => Reply::new(404, ""),
    });
    fails(&Home::new().run(&hub.address, &["pull", "org/name"]), "more than 8 redirects");
    assert_eq!(hub.asked().len(), 9);
}

#[test]
fn a_saved_token_is_used_as_the_hubs_own_tools_do() {
    let (home, hub) = (Home::new(), hub(FILES));
    let folder = home.0.path().join(".cache/huggingface");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("token"), "hf_saved\n").unwrap();
    succeeds(&home.run(&hub.address, &["pull", "org/name"]));
    assert!(hub.asked().iter().all(|asked| asked.headers["authorization"] == "Bearer hf_saved"));
}

#[test]
fn hostile_lists_write_nothing() {
    let good = text(&listing(FILES));
    for bad in [
        good.replace("name-Q4_K_M.gguf", "../../name-Q4_K_M.gguf"),
        good.replace("name-Q4_K_M.gguf", "/tmp/name-Q4_K_M.gguf"),
        good.replace(&sha256(SMALL), "../../../../etc/passwd"),
        good.replace(&sha256(SMALL), &sha256(SMALL)[..63]),
        good.replace(COMMIT, "../main"),
        "[[[[".repeat(100_000),
    ] {
        let home = Home::new();
        let hub = Stub::start(move |_| Reply::new(200, bad.clone()));
        fails(&home.run(&hub.address, &["pull", "org/name"]), "list of files");
        assert!(!home.cache().exists());
    }
}

#[test]
fn what_the_hub_refuses_is_said_plainly() {
    for (status, message) in [(404, "no model org/name"), (401, "token"), (403, "token"), (500, "500")] {
        let hub = Stub::start(move |_| Reply::new(status, ""));
        fails(&Home::new().run(&hub.address, &["pull", "org/name"]), message);
    }
    let hub = hub(FILES);
    fails(&Home::new().run(&hub.address, &["pull", "org/name:Q5_K_M"]), "Q4_K_M, Q8_0");
    fails(&Home::new().run("http://127.0.0.1:9", &["pull", "org/name"]), "127.0.0.1:9");
    let wrong = Home::new().run(&hub.address, &["pull", "../name"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_folder_of_safetensors_comes_whole() {
    const FOLDER: &[(&str, &[u8])] = &[
        ("model.safetensors", b"weights"),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{ }"),
        ("training.py", b"x"),
    ];
    let (home, hub) = (Home::new(), hub(FOLDER));
    let path = succeeds(&home.run(&hub.address, &["pull", "org/name"]));
    let mut names: Vec<String> = std::fs::read_dir(path.trim_end())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn models_of_ones_own_folder_have_names_too() {
    let home = Home::new();
    let folder = home.0.path().join(".local/share/millpond/models");
    std::fs::create_dir_all(folder.join("story")).unwrap();
    std::fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/assets/delta-48m-Q4_K_M.gguf"),
        folder.join("mine.gguf"),
    )
    .unwrap();
    std::fs::write(folder.join("story/config.json"), "{").unwrap();
    // A header that lies costs nothing: it is not read.
    std::fs::write(folder.join("bomb.gguf"), [&b"GGUF\x03\0\0\0"[..], &[0xff; 16]].concat()).unwrap();
    let listed = succeeds(&home.run("", &["list"]));
    for name in ["mine", "story", "bomb", "delta-48m"] {
        assert!(listed.lines().any(|line| line.starts_with(name)), "{name} in {listed}");
    }
    let run = |arguments: &[&str]| {
        succeeds(&home.run("", &[&["run", "x", "-n", "2", "--temp", "0"], arguments].concat()))
    };
    assert_eq!(run(&["-m", "mine"]), run(&[]));
    succeeds(&home.run("", &["rm", "bomb", "story"]));
    assert!(
        !folder.join("bomb.gguf").exists()
            && !folder.join("story").exists()
            && folder.join("mine.gguf").exists()
    );
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn https_is_checked_against_the_certificates_trusted() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let certificate = CertificateDer::from_pem_file(data.join("hub.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(data.join("hub.key")).unwrap();
    let provider = std::sync::Arc::new(rustls_graviola::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = std::sync::Arc::new(config);
    let accept = move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).ok()?, stream);
        // A client that does not trust us ends here.
        stream.conn.complete_io(&mut stream.sock).ok()?;
        Some(Box::new(stream) as Box<dyn hub_stub::Connection>)
    };
    let hub = Stub::start_with(accept, "https", |asked| answer(asked, FILES));
    let home = Home::new();
    fails(&home.run(&hub.address, &["pull", "org/name"]), "certificate");
    assert_eq!(hub.asked().len(), 0);
    let trusting =
        home.command(&hub.address, &["pull", "org/name"]).env("SSL_CERT_FILE", data.join("hub.pem")).output();
    let path = succeeds(&trusting.unwrap());
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), SMALL);
    assert_eq!(hub.asked().len(), 2);
}
