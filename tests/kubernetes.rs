//! The files for Kubernetes agree with each other, with the image, and with the config that they carry. That they are what
//! Kubernetes takes is for `just kubernetes`, which has its schemas.

use std::fs;
use std::path::Path;
use std::time::Duration;

use steadfast::Config;

/// The time after its deadline that a worker has to end by itself, as docs/shutdown.md says.
const GRACE: Duration = Duration::from_secs(5);

/// What is shipped, with the number of places in which each has the label: its own, and each by which it finds pods. (The
/// Deployment's are its own, its pods', its selector, and the spread of its pods.)
const KINDS: [(&str, usize); 6] = [
    ("ConfigMap", 1),
    ("Deployment", 4),
    ("HorizontalPodAutoscaler", 1),
    ("PodDisruptionBudget", 2),
    ("PodMonitor", 2),
    ("Service", 2),
];

fn shipped(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// What stands below a key, at a greater indent.
fn below(yaml: &str, key: &str) -> String {
    let mut lines = yaml.lines();
    let first = lines.find(|line| line.trim().trim_start_matches("- ").starts_with(key));
    let depth = indent(first.unwrap_or_else(|| panic!("no {key} in:\n{yaml}")));
    let block: Vec<_> = lines.take_while(|line| line.trim().is_empty() || indent(line) > depth).collect();
    let least = block.iter().filter(|line| !line.trim().is_empty()).map(|line| indent(line)).min();
    block
        .iter()
        .map(|line| line.get(least.unwrap_or_default()..).unwrap_or_default().to_owned() + "\n")
        .collect()
}

/// The value of a key on its own line.
fn value<'a>(yaml: &'a str, key: &str) -> &'a str {
    let mut lines = yaml.lines().map(|line| line.trim().trim_start_matches("- "));
    let found = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    found.unwrap_or_else(|| panic!("no {key} in:\n{yaml}"))
}

fn seconds(yaml: &str, key: &str) -> Duration {
    Duration::from_secs(value(yaml, key).parse().expect("a number"))
}

fn config() -> Config {
    let text = below(&shipped("kubernetes/configmap.yaml"), "config.toml: |");
    Config::parse(&text, "configmap.yaml").unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_pod_has_time_for_the_whole_stop_and_endpoints_have_a_delay() {
    let shutdown = config().shutdown;
    let deployment = shipped("kubernetes/deployment.yaml");
    let grace = seconds(&deployment, "terminationGracePeriodSeconds");
    let stop = shutdown.delay + shutdown.deadline.expect("a pod does not wait for ever") + GRACE;
    assert!(stop < grace, "a stop may take {stop:?}, and a pod is killed after {grace:?}");
    assert!(!shutdown.delay.is_zero(), "new clients come until every proxy has heard of it");
}

#[test]
fn ports_probes_and_monitors_meet_what_the_config_listens_on() {
    let text = below(&shipped("kubernetes/configmap.yaml"), "config.toml: |");
    let deployment = shipped("kubernetes/deployment.yaml");
    let ports = below(&deployment, "ports:");
    for (section, name) in [("[http]", "http"), ("[admin]", "admin")] {
        let section = text.split_once(section).expect("it is there").1;
        let port = value(below(&ports, &format!("name: {name}")).as_str(), "containerPort").to_owned();
        // Every address of the pod: the kubelet and Prometheus are elsewhere.
        let listen = format!("listen = [\"0.0.0.0:{port}\"]");
        assert!(section.trim_start().contains(&listen), "{listen} in {section}");
    }
    for (probe, path) in
        [("startupProbe:", "/livez"), ("readinessProbe:", "/readyz"), ("livenessProbe:", "/livez")]
    {
        let probe = below(&deployment, probe);
        assert_eq!((value(&probe, "path"), value(&probe, "port")), (path, "admin"));
    }
    assert_eq!(value(&shipped("kubernetes/podmonitor.yaml"), "port"), "admin");
    assert_eq!(value(&shipped("kubernetes/service.yaml"), "targetPort"), "http");
}

#[test]
fn the_pod_runs_the_image_as_it_is_built() {
    let containerfile = shipped("container/Containerfile");
    let deployment = shipped("kubernetes/deployment.yaml");
    let instruction = |name: &str| {
        let found = containerfile.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {name}"))
    };
    let ids = [value(&deployment, "runAsUser"), value(&deployment, "runAsGroup")];
    assert_eq!(instruction("USER"), ids.join(":"));
    let runtime = instruction("ENV").split(' ').find_map(|pair| pair.strip_prefix("RUNTIME_DIRECTORY="));
    let mounts = below(&deployment, "volumeMounts:");
    for path in ["/etc/steadfast", runtime.expect("the control socket's folder")] {
        assert!(mounts.contains(&format!("mountPath: {path}\n")), "{path} in {mounts}");
    }
    let image = value(&deployment, "image");
    assert!(image.ends_with(&format!("/steadfast:{}", env!("CARGO_PKG_VERSION"))), "{image}");
}

#[test]
fn the_pod_may_do_nothing_that_it_need_not() {
    let deployment = shipped("kubernetes/deployment.yaml");
    for (key, expected) in [
        ("runAsNonRoot", "true"),
        ("readOnlyRootFilesystem", "true"),
        ("allowPrivilegeEscalation", "false"),
        ("automountServiceAccountToken", "false"),
    ] {
        assert_eq!(value(&deployment, key), expected, "{key}");
    }
    assert_eq!(below(&deployment, "drop:"), "- ALL\n");
    assert_eq!(value(&below(&deployment, "seccompProfile:"), "type"), "RuntimeDefault");
}

#[test]
fn every_object_finds_the_pods_by_their_label_and_has_the_name_of_the_service() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes");
    let files = fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("it can be read").path());
    let mut kinds: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let yaml = fs::read_to_string(&path).expect("it is text");
            assert_eq!(value(&below(&yaml, "metadata:"), "name"), "steadfast", "{}", path.display());
            let kind = value(&yaml, "kind").to_owned();
            let labels = KINDS.iter().find(|(name, _)| *name == kind).map_or(0, |(_, labels)| *labels);
            for label in ["app.kubernetes.io/name: ", "app.kubernetes.io/name: steadfast\n"] {
                assert_eq!(yaml.matches(label).count(), labels, "{label:?} in {kind}");
            }
            let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
            assert_eq!(file, kind.to_lowercase());
            kind
        })
        .collect();
    kinds.sort();
    assert_eq!(kinds, KINDS.map(|(kind, _)| kind));
    let scaled = below(&shipped("kubernetes/horizontalpodautoscaler.yaml"), "scaleTargetRef:");
    assert_eq!((value(&scaled, "kind"), value(&scaled, "name")), ("Deployment", "steadfast"));
}
