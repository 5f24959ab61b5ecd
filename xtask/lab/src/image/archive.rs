//! Images as one file that every engine takes: a tar that is an OCI image layout
//! (<https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>) and an archive of
//! `docker save` at once, as Docker 25 and later write it. `docker load`, `podman load`,
//! `ctr images import`, `skopeo copy` and `kind load image-archive` read it.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::Builder;

use super::tree::{Tree, directory, file};

/// How a container of an image starts.
#[derive(Default)]
pub(crate) struct Image {
    /// What it is called: `name:tag`, with the host of a registry before or without.
    pub(crate) names: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    /// Arguments, unless others are given.
    pub(crate) command: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// `UID:GID` [default: what the engine takes, which is root].
    pub(crate) user: Option<&'static str>,
}

const EPOCH: &str = "1970-01-01T00:00:00Z";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Writes images that share the same files. `arch` is what Rust calls it.
pub(crate) fn write(to: impl Write, arch: &str, tree: &Tree, images: &[Image]) -> Result<()> {
    let mut blobs = Blobs::default();
    let layer = blobs.add(tree.layer()?);
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    for image in images {
        let config = blobs.add(config(image, arch, &layer.digest).to_string().into_bytes());
        docker.push(json!({
            "Config": config.path(),
            "RepoTags": image.names,
            "Layers": [layer.path()],
        }));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
        });
        let manifest = blobs.add(manifest.to_string().into_bytes());
        for name in &image.names {
            let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
            entry["annotations"] = json!({
                "io.containerd.image.name": full(name),
                "org.opencontainers.image.ref.name": tag(name),
            });
            entry["platform"] = json!({ "architecture": architecture(arch), "os": "linux" });
            index.push(entry);
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": index,
    });
    let mut tar = Builder::new(to);
    directory(&mut tar, "blobs", 0o755)?;
    directory(&mut tar, "blobs/sha256", 0o755)?;
    for (digest, content) in &blobs.0 {
        file(&mut tar, &format!("blobs/sha256/{digest}"), 0o444, content)?;
    }
    file(&mut tar, "index.json", 0o444, index.to_string().as_bytes())?;
    file(&mut tar, "manifest.json", 0o444, Value::from(docker).to_string().as_bytes())?;
    file(&mut tar, "oci-layout", 0o444, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.into_inner()?.flush()?;
    Ok(())
}

fn config(image: &Image, arch: &str, layer: &str) -> Value {
    let mut config = json!({
        "Env": [PATH],
        "WorkingDir": "/",
    });
    if !image.entrypoint.is_empty() {
        config["Entrypoint"] = json!(image.entrypoint);
    }
    if !image.command.is_empty() {
        config["Cmd"] = json!(image.command);
    }
    if let Some(user) = image.user {
        config["User"] = json!(user);
    }
    if !image.labels.is_empty() {
        config["Labels"] = json!(image.labels);
    }
    json!({
        "created": EPOCH,
        "architecture": architecture(arch),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        "history": [{ "created": EPOCH, "created_by": "cargo xtask image" }],
    })
}

/// What Go, and so every registry, calls it.
fn architecture(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The name as containerd knows it: what Docker leaves out is written out.
fn full(name: &str) -> String {
    let host = name.split_once('/').map(|(host, _)| host);
    match host {
        Some(host) if host == "localhost" || host.contains(['.', ':']) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn tag(name: &str) -> &str {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split_once(':').map_or("latest", |(_, tag)| tag)
}

/// Contents by their digests, in hexadecimal.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

struct Blob {
    digest: String,
    size: usize,
}

impl Blobs {
    fn add(&mut self, content: Vec<u8>) -> Blob {
        let blob = Blob { digest: sha256(&content), size: content.len() };
        self.0.insert(blob.digest.clone(), content);
        blob
    }
}

impl Blob {
    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.size,
        })
    }
}

/// In hexadecimal.
pub(crate) fn sha256(content: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|it| char::from_digit(it.into(), 16));
    Sha256::digest(content).iter().flat_map(digits).flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn archive() -> Vec<u8> {
        let mut tree = Tree::default();
        tree.file("etc/passwd", "root:x:0:0:root:/:/none\n");
        let image = |name: &str, entrypoint: &str| Image {
            names: vec![name.to_owned(), format!("localhost/{name}")],
            entrypoint: vec![entrypoint.to_owned()],
            ..Image::default()
        };
        let mut archive = Vec::new();
        let images = [image("a:1", "/a"), image("b:1", "/b")];
        write(&mut archive, "x86_64", &tree, &images).unwrap();
        archive
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        files
    }

    #[test]
    fn the_same_image_is_the_same_archive() {
        assert_eq!(sha256(&archive()), sha256(&archive()));
    }

    #[test]
    fn a_digest_is_in_hexadecimal() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), empty);
    }

    #[test]
    fn both_kinds_of_reader_find_all_they_look_for() {
        let files = files(&archive());
        let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            assert_eq!(sha256(&files[&format!("blobs/sha256/{digest}")]), digest);
            format!("blobs/sha256/{digest}")
        };
        let index = json("index.json");
        let entries = index["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), 4);
        assert_eq!(entries[0]["annotations"]["io.containerd.image.name"], "docker.io/library/a:1");
        for entry in entries {
            let manifest = json(&blob(&entry["digest"]));
            let config = json(&blob(&manifest["config"]["digest"]));
            let layer = &manifest["layers"][0];
            blob(&layer["digest"]);
            assert_eq!(config["rootfs"]["diff_ids"][0], layer["digest"]);
            assert_eq!(config["architecture"], "amd64");
        }
        let docker = json("manifest.json");
        assert_eq!(docker[1]["RepoTags"], json!(["b:1", "localhost/b:1"]));
        for image in docker.as_array().unwrap() {
            let config = json(image["Config"].as_str().unwrap());
            let layer = image["Layers"][0].as_str().unwrap();
            let digest = layer.replace("blobs/sha256/", "sha256:");
            assert_eq!(config["rootfs"]["diff_ids"][0], digest);
        }
        assert!(files.contains_key("oci-layout"));
    }

    #[test]
    fn a_short_name_is_written_out() {
        assert_eq!(full("socklb:1"), "docker.io/library/socklb:1");
        assert_eq!(full("who/what:1"), "docker.io/who/what:1");
        assert_eq!(full("localhost/tools:1"), "localhost/tools:1");
        assert_eq!(full("host:5000/what:1"), "host:5000/what:1");
        assert_eq!((tag("host:5000/what:1"), tag("host:5000/what")), ("1", "latest"));
    }
}
