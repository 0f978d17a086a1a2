//! Requests to a hub, which go nowhere else.
//!
//! Every address, of a redirect too, must be of an allowed host. The token goes to the hub's own address alone: neither to
//! the hosts that files are fetched from nor over a connection that others can read.

use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, LOCATION, RANGE};
use ureq::http::uri::{Authority, Scheme, Uri};

use super::error::HubError;
use super::reference::{ModelRef, is_path};
use super::tls;

/// The hub that is asked unless another is named.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Hosts, with all below them, where that hub keeps its files.
const FILE_HOSTS: [&str; 2] = ["huggingface.co", "hf.co"];
/// Most redirects of a request.
const MAX_REDIRECTS: usize = 8;
/// Longest list of files, in bytes.
const MAX_LISTING: u64 = 32 << 20;
/// Longest wait for a connection, for an answer to begin, and for more of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a hub is reached.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// Its address; the environment's (`HF_ENDPOINT`), or Hugging Face's own, if absent.
    pub endpoint: Option<String>,
    /// Sent to that address alone.
    pub token: Option<String>,
    /// Further hosts that redirects may lead to.
    pub hosts: Vec<String>,
}

/// A file of a repository, as the hub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubFile {
    /// Its path in the repository.
    pub(super) path: String,
    /// Its bytes.
    pub(super) size: u64,
    /// Its name in the cache: the SHA-256 of large files, git's own hash of small ones.
    pub(super) etag: String,
    /// Its SHA-256, where the hub knows it.
    pub(super) sha256: Option<String>,
}

/// A revision of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// The commit.
    pub(super) commit: String,
    /// Its files.
    pub(super) files: Vec<HubFile>,
}

/// Speaks to a hub.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
    hosts: Vec<String>,
}

impl Client {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// [`HubError`] about an address that cannot be used.
    pub fn new(options: ClientOptions) -> Result<Client, HubError> {
        let address = options.endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let address = address.trim_end_matches('/').to_owned();
        let wrong = |reason: &str| HubError::Endpoint { address: address.clone(), reason: reason.to_owned() };
        let endpoint: Uri = address.parse().map_err(|_| wrong("no address of the form https://host"))?;
        if !matches!(endpoint.scheme_str(), Some("https" | "http"))
            || endpoint.host().is_none_or(str::is_empty)
        {
            return Err(wrong("no address of the form https://host"));
        }
        if endpoint.query().is_some() || endpoint.authority().is_some_and(|host| host.as_str().contains('@'))
        {
            return Err(wrong("it has a query or a name and password"));
        }
        let config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("millpond/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        let agent = tls::with_tls(config)?.build().new_agent();
        Ok(Client {
            agent,
            endpoint,
            token: options.token.filter(|token| !token.is_empty()),
            hosts: options.hosts,
        })
    }

    /// The files of a repository's revision.
    pub(super) fn list(&self, model: &ModelRef, revision: &str) -> Result<Listing, HubError> {
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.base(), model.repository());
        let mut response = self.get(&url, None)?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => return Err(HubError::Forbidden(model.repository())),
            404 => return Err(HubError::NotFound(model.repository())),
            status => return Err(HubError::Status { url, status }),
        }
        let wrong = |reason: String| HubError::Listing { model: model.repository(), reason };
        let body = response.body_mut().with_config().limit(MAX_LISTING).read_to_vec();
        let body = body.map_err(|error| wrong(error.to_string()))?;
        let listing: RawListing = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
        listing.checked().map_err(wrong)
    }

    /// Where a file is fetched.
    pub(super) fn file_url(&self, model: &ModelRef, commit: &str, path: &str) -> String {
        let path: Vec<String> = path.split('/').map(percent_encoded).collect();
        format!("{}/{}/resolve/{commit}/{}", self.base(), model.repository(), path.join("/"))
    }

    fn base(&self) -> String {
        self.endpoint.to_string().trim_end_matches('/').to_owned()
    }

    /// The answer to a request, after redirects. `from` asks for the bytes from there on.
    pub(super) fn get(
        &self,
        url: &str,
        from: Option<u64>,
    ) -> Result<ureq::http::Response<ureq::Body>, HubError> {
        let mut address = parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            self.check(&address)?;
            let failed = |reason: String| HubError::Http { url: without_query(&address), reason };
            let mut request = self.agent.get(&address);
            if let Some(token) = self.token.as_ref().filter(|_| self.may_have_token(&address)) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| match error {
                ureq::Error::Io(error) => failed(format!("cannot be reached: {error}")),
                other => failed(other.to_string()),
            })?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
            let target = target.ok_or_else(|| failed("a redirect to nowhere".to_owned()))?;
            address = joined(&address, target)?;
        }
        Err(HubError::Redirects { url: without_query(&parse(url)?), limit: MAX_REDIRECTS })
    }

    /// Whether an address may be asked at all.
    fn check(&self, address: &Uri) -> Result<(), HubError> {
        let host = address.host().unwrap_or_default().to_ascii_lowercase();
        let is_https = address.scheme() == Some(&Scheme::HTTPS);
        let own = same_place(address, &self.endpoint);
        let below = |allowed: &str| {
            host == allowed || host.strip_suffix(allowed).is_some_and(|rest| rest.ends_with('.'))
        };
        let for_files = is_https && usual_port(address) && FILE_HOSTS.iter().any(|allowed| below(allowed));
        let authority = address.authority().map(Authority::as_str).unwrap_or_default();
        // Never from an encrypted connection to one that is not.
        let steady = is_https || self.endpoint.scheme() == Some(&Scheme::HTTP);
        let named = steady && self.hosts.iter().any(|name| name.eq_ignore_ascii_case(authority));
        if !(own || for_files || named) {
            let mut allowed = vec![self.endpoint.authority().map(Authority::to_string).unwrap_or_default()];
            allowed.extend(FILE_HOSTS.iter().map(|host| (*host).to_owned()));
            allowed.extend(self.hosts.iter().cloned());
            allowed.dedup();
            let host = format!("{}://{authority}", address.scheme_str().unwrap_or("?"));
            return Err(HubError::ForeignHost { host, allowed: allowed.join(", ") });
        }
        if is_https { tls::check() } else { Ok(()) }
    }

    /// Whether an address is the hub's own and nobody on the way can read along.
    fn may_have_token(&self, address: &Uri) -> bool {
        let host = address.host().unwrap_or_default();
        let is_here = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
        same_place(address, &self.endpoint) && (address.scheme() == Some(&Scheme::HTTPS) || is_here)
    }
}

fn parse(url: &str) -> Result<Uri, HubError> {
    url.parse().map_err(|_| HubError::Http { url: url.to_owned(), reason: "no address".to_owned() })
}

/// Whether two addresses are of one host, port and scheme.
fn same_place(a: &Uri, b: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

fn port(uri: &Uri) -> Option<u16> {
    uri.port_u16().or(if uri.scheme() == Some(&Scheme::HTTPS) { Some(443) } else { Some(80) })
}

fn usual_port(uri: &Uri) -> bool {
    port(uri) == Some(443)
}

/// The address that a redirect from `base` names.
fn joined(base: &Uri, target: &str) -> Result<Uri, HubError> {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map(Authority::as_str).unwrap_or_default();
    let absolute = if target.contains("://") {
        target.to_owned()
    } else if target.starts_with("//") {
        format!("{scheme}:{target}")
    } else if target.starts_with('/') {
        format!("{scheme}://{authority}{target}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{target}")
    };
    parse(&absolute)
}

/// An address for a message: queries of signed addresses are secrets.
fn without_query(uri: &Uri) -> String {
    let text = uri.to_string();
    text.split_once('?').map_or(text.clone(), |(text, _)| text.to_owned())
}

/// One part of a path as an address has it.
fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if plain(byte) {
            encoded.push(char::from(byte))
        } else {
            encoded.push_str(&format!("%{byte:02X}"))
        }
        encoded
    })
}

/// A listing as it comes; nothing in it is trusted.
#[derive(Deserialize)]
struct RawListing {
    sha: String,
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<RawLarge>,
}

#[derive(Deserialize)]
struct RawLarge {
    sha256: String,
    size: u64,
}

impl RawListing {
    fn checked(self) -> Result<Listing, String> {
        if !is_hash(&self.sha, 40) {
            return Err("its commit is no hash".to_owned());
        }
        let files: Result<Vec<Option<HubFile>>, String> =
            self.siblings.into_iter().map(RawFile::checked).collect();
        Ok(Listing { commit: self.sha, files: files?.into_iter().flatten().collect() })
    }
}

impl RawFile {
    /// The file; `None` for one that the hub tells too little about, which is never needed.
    fn checked(self) -> Result<Option<HubFile>, String> {
        let path = self.rfilename;
        if !is_path(&path) {
            return Err(format!("it names the path {path:?}"));
        }
        if let Some(large) = self.lfs {
            if !is_hash(&large.sha256, 64) {
                return Err(format!("{path} has no SHA-256 of 64 hexadecimal digits"));
            }
            let (size, sha256) = (large.size, large.sha256);
            return Ok(Some(HubFile { path, size, etag: sha256.clone(), sha256: Some(sha256) }));
        }
        match (self.size, self.blob_id) {
            (Some(size), Some(etag)) if is_hash(&etag, 40) => {
                Ok(Some(HubFile { path, size, etag, sha256: None }))
            }
            (_, Some(etag)) if !is_hash(&etag, 40) => {
                Err(format!("{path} has no hash of 40 hexadecimal digits"))
            }
            _ => Ok(None),
        }
    }
}

/// Whether a text is a hash of so many digits: it becomes the name of a file.
pub(super) fn is_hash(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str, hosts: &[&str]) -> Client {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let options =
            ClientOptions { endpoint: Some(endpoint.to_owned()), token: Some("t".to_owned()), hosts };
        Client::new(options).unwrap()
    }

    fn allowed(client: &Client, url: &str) -> bool {
        !matches!(client.check(&url.parse().unwrap()), Err(HubError::ForeignHost { .. }))
    }

    #[test]
    fn only_the_hub_and_its_file_hosts_are_asked() {
        let hub = client("https://huggingface.co", &[]);
        for url in
            ["https://huggingface.co/a", "https://cdn-lfs.hf.co/b?x", "https://cas-bridge.xethub.hf.co/c"]
        {
            assert!(allowed(&hub, url), "{url}");
        }
        for url in [
            "http://huggingface.co/a",
            "https://huggingface.co.evil.example/a",
            "https://evilhf.co/a",
            "https://hf.co:8443/a",
            "https://127.0.0.1/a",
            "http://169.254.169.254/latest",
            "https://huggingface.co@evil.example/",
            "ftp://huggingface.co/a",
        ] {
            assert!(!allowed(&hub, url), "{url}");
        }
        let mirror = client("http://127.0.0.1:9000/hub", &["files.example:81"]);
        assert!(allowed(&mirror, "http://127.0.0.1:9000/x") && allowed(&mirror, "http://files.example:81/x"));
        assert!(!allowed(&mirror, "http://127.0.0.1:9001/x") && !allowed(&mirror, "http://files.example/x"));
    }

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        let of = |endpoint: &str, url: &str| client(endpoint, &[]).may_have_token(&url.parse().unwrap());
        assert!(of("https://huggingface.co", "https://huggingface.co/x"));
        assert!(of("https://huggingface.co", "https://huggingface.co:443/x"));
        assert!(!of("https://huggingface.co", "https://cdn-lfs.huggingface.co/x"));
        assert!(!of("https://huggingface.co", "http://huggingface.co/x"));
        assert!(of("http://127.0.0.1:9000", "http://127.0.0.1:9000/x"));
        assert!(!of("http://127.0.0.1:9000", "http://127.0.0.1:9001/x"));
        assert!(!of("http://hub.lan", "http://hub.lan/x"), "anybody on the way could read it");
    }

    #[test]
    fn redirects_are_read_like_a_browser_does() {
        let base: Uri = "https://a.b:1/c/d?e".parse().unwrap();
        for (target, expected) in [
            ("/x", "https://a.b:1/x"),
            ("//h/y", "https://h/y"),
            ("f", "https://a.b:1/c/f"),
            ("http://z/", "http://z/"),
        ] {
            assert_eq!(joined(&base, target).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn listings_are_not_trusted() {
        let of = |text: &str| {
            serde_json::from_str::<RawListing>(text).map_err(|e| e.to_string()).and_then(RawListing::checked)
        };
        let commit = "a".repeat(40);
        let sha = "b".repeat(64);
        let good = format!(
            r#"{{"sha":"{commit}","siblings":[{{"rfilename":"m.gguf","size":5,"blobId":"{commit}","lfs":{{"sha256":"{sha}","size":5,"pointerSize":9}}}},{{"rfilename":"c.json","size":2,"blobId":"{commit}"}},{{"rfilename":"odd"}}]}}"#
        );
        let files = of(&good).unwrap().files;
        assert_eq!(files.len(), 2);
        assert_eq!((files[0].etag.as_str(), files[0].sha256.as_deref()), (sha.as_str(), Some(sha.as_str())));
        for bad in [
            good.replace("m.gguf", "../m.gguf"),
            good.replace(&sha, "../../etc/passwd"),
            good.replace(&sha, &"B".repeat(64)),
            good.replace(&commit, "main"),
            good.replace("\"size\":5,\"pointer", "\"size\":-5,\"pointer"),
            "{}".to_owned(),
            "[".repeat(10_000),
        ] {
            assert!(of(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_without_a_host_are_refused() {
        for endpoint in ["", "huggingface.co", "ftp://x", "https://", "https://a@b", "https://a?b"] {
            let options = ClientOptions { endpoint: Some(endpoint.to_owned()), ..ClientOptions::default() };
            assert!(Client::new(options).is_err(), "{endpoint}");
        }
    }
}
