//! The images that pods of a cluster on this machine run. Nothing is fetched from a registry: they
//! hold Kubernetes' own programs, built here, and tools of this machine. They carry the names that
//! Kubernetes' tests ask for, so that these run as they are.

use std::{
    env::consts::ARCH,
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use tools::{
    cache::{Scratch, cache},
    exec::{ask, exec},
    path,
    setup::{self, Scope},
};

use super::{
    archive::{Image, write},
    machine,
    tree::Tree,
};
use crate::kube;

/// What holds a pod's namespaces; for the configuration of containerd.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// The resolver of the cluster.
pub(crate) const COREDNS: &str = "localhost/coredns:1";
/// agnhost.
pub(crate) const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// The same files, starting a shell.
pub(crate) const TOOLS: &str = "localhost/tools:1";

/// Names that a test starts with a command of its own, or somebody a shell.
const SHELLS: &[&str] = &[
    TOOLS,
    "docker.io/library/busybox:1.37.0",
    "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
    "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0",
];
/// What only has to run and answer at port 80.
const SERVERS: &[&str] = &["registry.k8s.io/e2e-test-images/nginx:1.15-4"];

/// Another of these texts is another image.
const RECIPE: &[&str] =
    &[include_str!("archive.rs"), include_str!("pods.rs"), include_str!("tree.rs")];

/// The archives of the images, for `ctr images import`. Quick when they are there.
pub(crate) fn cluster_images() -> Result<Vec<PathBuf>> {
    setup::ensure(&[Scope::Agent, Scope::Pods])?;
    let programs = kube::cluster_programs()?;
    Ok(vec![pause()?, coredns(&programs.join("coredns"))?, agnhost(&programs)?])
}

fn pause() -> Result<PathBuf> {
    let source = kube::sources()?.join("build/pause/linux/pause.c");
    cached("pause", &[&source], |scratch, archive| {
        let program = scratch.join("pause");
        let mut compile = Command::new("cc");
        compile.args(["-Os", "-static", "-DVERSION=socklb", "-o"]).arg(&program).arg(&source);
        exec(&mut compile).context("cannot compile a static C program")?;
        let mut tree = Tree::default();
        tree.program("pause", &program)?;
        archive_of(archive, &tree, &[image(&[PAUSE], &["/pause"], &[])])
    })
}

fn coredns(program: &Path) -> Result<PathBuf> {
    cached("coredns", &[program], |_, archive| {
        let mut tree = Tree::default();
        tree.program("coredns", program)?;
        archive_of(archive, &tree, &[image(&[COREDNS], &["/coredns"], &[])])
    })
}

/// The programs of the machine that an image gets, by the paths that they have there; where two
/// names are given, the first that is found.
const TOOLS_OF_THE_MACHINE: &[(&str, &[&str])] = &[
    ("bin/bash", &["bash"]),
    ("bin/nc", &["nc.openbsd", "nc"]),
    ("usr/bin/curl", &["curl"]),
    ("usr/bin/dig", &["dig"]),
    ("usr/bin/getent", &["getent"]),
    ("usr/bin/iperf3", &["iperf3"]),
    ("usr/bin/wget", &["wget"]),
];

/// Sends packets that connection tracking takes for invalid.
const INVALID: &str = "regression-issue-74839";
/// What agnhost's own image has beside it, as far as tests of the network ask for it: a resolver to
/// be configured, and the certificate of a server that answers at many ports.
const BESIDE_AGNHOST: &[(&str, &str)] = &[
    ("localhost.crt", "test/images/agnhost/porter/localhost.crt"),
    ("localhost.key", "test/images/agnhost/porter/localhost.key"),
];

fn agnhost(programs: &Path) -> Result<PathBuf> {
    let mut files: Vec<_> =
        ["agnhost", "coredns", INVALID].map(|name| (name, programs.join(name))).into();
    files.push(("bin/busybox", kube::busybox()?));
    let sources = kube::sources()?;
    for (path, names) in TOOLS_OF_THE_MACHINE {
        let program = names.iter().find_map(|name| path::find(name));
        files.push((path, program.with_context(|| format!("no {} on the PATH", names[0]))?));
    }
    let mut libraries: Vec<_> =
        files.iter().flat_map(|(_, program)| machine::libraries(program)).collect();
    libraries.extend(machine::resolver(&libraries));
    libraries.sort();
    libraries.dedup();
    let inputs = files.iter().map(|(_, file)| file).chain(&libraries);
    let inputs: Vec<&Path> = inputs.map(PathBuf::as_path).collect();
    cached("agnhost", &inputs, |_, archive| {
        let mut tree = Tree::default();
        for (path, program) in &files {
            tree.program(path, program)?;
        }
        for library in &libraries {
            machine::add_library(&mut tree, library)?;
        }
        for (path, source) in BESIDE_AGNHOST {
            let source = sources.join(source);
            let content = fs::read(&source);
            tree.file(path, content.with_context(|| format!("no {}", source.display()))?);
        }
        // The wget of agnhost's own image is busybox's, which tries once.
        tree.file("etc/wgetrc", "tries = 1\n");
        tree.directory("uploads", 0o1777);
        // bash, as a static busybox starts its own applets before the programs of the same names.
        tree.link("bin/sh", "bash");
        let applets = ask(Command::new(kube::busybox()?).arg("--list"));
        for applet in applets.context("busybox does not list its applets")?.lines() {
            let paths = [format!("bin/{applet}"), format!("usr/bin/{applet}")];
            if !paths.iter().any(|path| tree.has(path)) {
                tree.link(&paths[0], "busybox");
            }
        }
        accounts(&mut tree);
        archive_of(
            archive,
            &tree,
            &[
                image(&[AGNHOST], &["/agnhost"], &["pause"]),
                image(SHELLS, &[], &["sh"]),
                image(SERVERS, &["/agnhost", "netexec", "--http-port=80"], &[]),
                image(
                    &[&format!("registry.k8s.io/e2e-test-images/{INVALID}:1.4")],
                    &[&format!("/{INVALID}")],
                    &[],
                ),
            ],
        )
    })
}

/// What programs ask about users and names, and where they write.
fn accounts(tree: &mut Tree) {
    tree.file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    );
    tree.file("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    tree.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");
    tree.directory("root", 0o700);
    tree.directory("tmp", 0o1777);
}

fn image(names: &[&str], entrypoint: &[&str], command: &[&str]) -> Image {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Image {
        names: owned(names),
        entrypoint: owned(entrypoint),
        command: owned(command),
        ..Image::default()
    }
}

fn archive_of(to: &Path, tree: &Tree, images: &[Image]) -> Result<()> {
    write(BufWriter::new(File::create(to)?), ARCH, tree, images)
}

/// The archive `name`, made by `make` unless it was made of the same `inputs` before. `make` gets a
/// directory to work in, and the path of the archive.
pub(super) fn cached(
    name: &str,
    inputs: &[&Path],
    make: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    RECIPE.hash(&mut hasher);
    for input in inputs {
        // Whoever changes a program changes one of these.
        let metadata = fs::metadata(input).with_context(|| format!("no {}", input.display()))?;
        (input, metadata.len(), metadata.modified()?).hash(&mut hasher);
    }
    let directory = cache()?.join("images");
    let file = format!("{name}-{:016x}.tar", hasher.finish());
    if !directory.join(&file).exists() {
        let scratch = Scratch::new(&directory)?;
        make(&scratch.0, &scratch.0.join(&file))
            .with_context(|| format!("cannot make the image {name}"))?;
        scratch.deliver(&file, &directory)?;
    }
    Ok(directory.join(file))
}
