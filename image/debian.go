package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const suite = "bookworm"

// debianPackages is what a workflow expects to find; what they depend on comes with them. Compilers are left to
// the workflow.
func debianPackages() []string {
	return []string{
		"bash", "coreutils", "git", "curl", "ca-certificates", "sudo", "tar", "gzip", "xz-utils", "zstd", "unzip",
		"jq", "python3", "python-is-python3", "procps", "iproute2", "openssh-client", "mount", "netbase",
	}
}

// enginePackages are what the full image has beyond debianPackages: podman, which needs no daemon, and what it starts
// containers and their networks with. runc would do as well as crun; crun is C and takes a tenth of the time to start,
// which counts under software emulation.
func enginePackages() []string {
	return []string{"podman", "crun", "netavark", "aardvark-dns", "iptables"}
}

// packages are all that the image asks for by name.
func (b BuildConfig) packages() []string {
	if b.Full {
		return append(debianPackages(), enginePackages()...)
	}
	return debianPackages()
}

func debianFiles() []rootFile {
	return []rootFile{
		{"etc/dpkg/dpkg.cfg.d/tgr", 0o644, "force-unsafe-io\n"},
		{"etc/profile.d/tgr.sh", 0o644, "export LANG=C.UTF-8\n"},
	}
}

// engineFiles configure the engine: no systemd, no journal, no questions about short names. Steps that call docker, as
// jobs on GitHub may, get podman as root, whose images and containers are those of the job's own containers.
func engineFiles() []rootFile {
	return []rootFile{
		{"etc/containers/containers.conf.d/tgr.conf", 0o644, `[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"

[containers]
log_driver = "k8s-file"

[network]
network_backend = "netavark"
`},
		// A registry on the machine's own loopback, as a service of the job is, needs no certificate; docker has the same rule.
		{"etc/containers/registries.conf.d/tgr.conf", 0o644, `unqualified-search-registries = ["docker.io"]
short-name-mode = "permissive"

[[registry]]
location = "localhost"
insecure = true

[[registry]]
location = "127.0.0.1"
insecure = true
`},
		{"etc/containers/storage.conf", 0o644, "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n"},
		{"var/lib/containers/README", 0o644, "The agent mounts the machine's writable disk here.\n"},
		{"usr/local/bin/docker", 0o755, "#!/bin/sh\n[ \"$(id -u)\" = 0 ] && exec podman \"$@\"\nexec sudo -n --preserve-env podman \"$@\"\n"},
	}
}

func dpkgOptions() []string {
	return []string{
		"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*",
		"path-include=/usr/share/locale/locale.alias", "path-exclude=/usr/share/doc/*",
		"path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/lintian/*",
	}
}

// debianRoot installs the packages and applies what they make. The same packages make the same tree.
func (b BuildConfig) debianRoot(ctx context.Context, work string, t *tree, r *Root) error {
	r.Suite = suite
	t.latest = epoch()
	archive := filepath.Join(work, "root.tar")
	if err := b.mmdebstrap(ctx, work, archive); err != nil {
		return err
	}
	if b.Progress != nil {
		b.Progress("unpack the packages", 0, 0)
	}
	if err := applyFile(ctx, t, archive); err != nil {
		return err
	}
	status, _, err := t.read("var/lib/dpkg/status", 64<<20)
	if err != nil {
		return err
	}
	if r.Packages, err = parseStatus(status); err != nil {
		return err
	}
	all := func(string) bool { return true }
	old := func(base string) bool { return strings.HasSuffix(base, "-old") }
	bin := func(base string) bool { return strings.HasSuffix(base, ".bin") || strings.HasSuffix(base, ".deb") }
	t.clear("var/cache/apt", bin)
	t.clear("var/cache/apt/archives", bin)
	t.clear("var/lib/apt/lists", all)
	t.clear("var/cache/debconf", old)
	t.clear("var/lib/dpkg", old)
	t.clear("var/cache/ldconfig", all) // knows when the libraries were unpacked
	for _, dir := range []string{"var/lib/apt/lists/partial", "var/log/apt"} {
		if err := t.folder(dir, 0o755, 0); err != nil {
			return err
		}
	}
	return nil
}

// mmdebstrap installs the packages into an archive: as root in the folder work, otherwise in a user namespace.
func (b BuildConfig) mmdebstrap(ctx context.Context, work, archive string) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fmt.Errorf("%w: install the Debian package mmdebstrap", err)
	}
	mode := "--mode=unshare"
	env := append(os.Environ(), "LC_ALL=C", "SOURCE_DATE_EPOCH="+strconv.FormatInt(epoch().Unix(), 10))
	if os.Geteuid() == 0 {
		mode, env = "--mode=root", append(env, "TMPDIR="+work)
	}
	args := []string{mode, "--variant=apt", "--format=tar", "--include=" + strings.Join(b.packages(), ","),
		`--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`}
	for _, o := range dpkgOptions() {
		args = append(args, "--dpkgopt="+o)
	}
	args = append(args, suite, archive)
	if b.Mirror != "" {
		args = append(args, b.Mirror)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second // mmdebstrap removes its folder and mounts when it is asked to end
	said := &steps{progress: b.Progress}
	cmd.Stdout, cmd.Stderr = io.Discard, said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("mmdebstrap: %w; it said:\n%s", err, said.tail)
	}
	return nil
}

// steps turns mmdebstrap's "I: ..." lines into progress and keeps the last of what it said.
type steps struct {
	progress Progress
	line     []byte
	tail     []byte
}

const maxTail = 4 << 10

func (s *steps) Write(p []byte) (int, error) {
	s.tail = append(s.tail, p...)
	s.tail = s.tail[max(0, len(s.tail)-maxTail):]
	s.line = append(s.line, p...)
	for {
		line, rest, ok := bytes.Cut(s.line, []byte("\n"))
		if !ok {
			break
		}
		s.line = rest
		if text, ok := bytes.CutPrefix(line, []byte("I: ")); ok && s.progress != nil {
			step, _, _ := strings.Cut(string(text), ":") // a hook's text follows its colon
			s.progress(strings.TrimSuffix(step, "..."), 0, 0)
		}
	}
	s.line = s.line[max(0, len(s.line)-maxTail):]
	return len(p), nil
}

// parseStatus reads the packages that are installed from dpkg's own list, /var/lib/dpkg/status.
func parseStatus(s string) ([]Package, error) {
	var out []Package
	for para := range strings.SplitSeq(s, "\n\n") {
		var p Package
		installed := false
		for line := range strings.Lines(para) {
			key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), ": ")
			switch key {
			case "Package":
				p.Name = value
			case "Version":
				p.Version = value
			case "Status":
				installed = strings.HasSuffix(value, " installed")
			}
		}
		if !installed {
			continue
		}
		if p.Name == "" || p.Version == "" {
			return nil, fmt.Errorf("dpkg's list has a package %q with the version %q", p.Name, p.Version)
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, errors.New("dpkg's list has no package")
	}
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
