package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// rootScript finishes the root filesystem and makes the ext4 image of it; see its own comment.
//
//go:embed root.sh
var rootScript string

const suite = "bookworm"

// What root.sh leaves: the image, and the list of packages in it.
const (
	rootImage    = "root.ext4"
	packagesFile = "packages"
)

// debianPackages is what a workflow expects to find; what they depend on comes with them. Compilers are left to
// the workflow.
func debianPackages() []string {
	return []string{
		"bash", "coreutils", "git", "curl", "ca-certificates", "sudo", "tar", "gzip", "xz-utils", "zstd", "unzip",
		"jq", "python3", "procps", "iproute2", "openssh-client", "mount", "netbase",
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

// files are all that is put over the packages.
func (b BuildConfig) files() []rootFile {
	if b.Full {
		return append(rootFiles(), engineFiles()...)
	}
	return rootFiles()
}

// engineFiles configure the engine: no systemd, no journal, no questions about short names. Steps that call docker, as
// jobs on GitHub may, get podman as root, whose images and containers are those of the job's own containers.
func engineFiles() []rootFile {
	return []rootFile{
		{"etc/containers/containers.conf.d/tgr.conf", 0o644, "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"crun\"\n\n[containers]\nlog_driver = \"k8s-file\"\n\n[network]\nnetwork_backend = \"netavark\"\n"},
		{"etc/containers/registries.conf.d/tgr.conf", 0o644, "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"permissive\"\n"},
		{"etc/containers/storage.conf", 0o644, "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n"},
		{"var/lib/containers/", 0, ""}, // where the agent mounts the writable disk itself
		{"usr/local/bin/docker", 0o755, "#!/bin/sh\n[ \"$(id -u)\" = 0 ] && exec podman \"$@\"\nexec sudo -n --preserve-env podman \"$@\"\n"},
	}
}

// rootFiles are the files that are put over the Debian packages.
func rootFiles() []rootFile {
	return []rootFile{
		{"etc/hostname", 0o644, "tgr\n"},
		{"etc/hosts", 0o644, "127.0.0.1 localhost tgr\n::1 localhost ip6-localhost ip6-loopback\n"},
		{"etc/sudoers.d/runner", 0o440, "runner ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:runner !requiretty, env_keep += \"CI GITHUB_* RUNNER_*\"\n"},
		{"etc/dpkg/dpkg.cfg.d/tgr", 0o644, "force-unsafe-io\n"},
		{"etc/profile.d/tgr.sh", 0o644, "export LANG=C.UTF-8\n"},
	}
}

type rootFile struct {
	Name string // a folder's ends with a slash
	Mode int64
	Text string
}

// recipe is the hash of everything that says how a root filesystem is built: the same recipe gives an image of
// the same kind, though of the Debian packages' versions of its day.
func (b BuildConfig) recipe() string {
	h := sha256.New()
	json.NewEncoder(h).Encode([]any{suite, b.Mirror, b.packages(), dpkgOptions(), nodePackages(), b.files(), rootLinks(), rootScript})
	return hex.EncodeToString(h.Sum(nil))
}

func dpkgOptions() []string {
	return []string{
		"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*",
		"path-include=/usr/share/locale/locale.alias", "path-exclude=/usr/share/doc/*",
		"path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/lintian/*",
	}
}

// rootLinks are symbolic links: name, target.
func rootLinks() [][2]string {
	links := [][2]string{}
	for _, node := range []string{"node20", "node24"} {
		for _, bin := range []string{"npm", "npx"} {
			links = append(links, [2]string{"opt/" + node + "/bin/" + bin, "../lib/node_modules/npm/bin/" + bin + "-cli.js"})
		}
	}
	for _, bin := range []string{"node", "npm", "npx"} {
		links = append(links, [2]string{"usr/local/bin/" + bin, "/opt/node20/bin/" + bin})
	}
	return links
}

// buildRoot makes the root filesystem as the ext4 image rootImage in the folder work.
func (b BuildConfig) buildRoot(ctx context.Context, work string) (Root, error) {
	r := Root{Recipe: b.recipe(), Suite: suite, Nodes: nodePackages()}
	extra := filepath.Join(work, "extra.tar")
	if err := b.writeExtra(ctx, work, extra); err != nil {
		return r, err
	}
	if err := b.mmdebstrap(ctx, work, extra); err != nil {
		return r, err
	}
	list, err := os.ReadFile(filepath.Join(work, packagesFile))
	if err != nil {
		return r, err
	}
	if r.Packages, err = parsePackages(string(list)); err != nil {
		return r, err
	}
	file, err := hashFile(ctx, filepath.Join(work, rootImage), "hash the root filesystem", b.Progress)
	r.File = file
	return r, err
}

// writeExtra fetches the Node runtimes and writes everything that is put over the Debian packages to one archive.
func (b BuildConfig) writeExtra(ctx context.Context, work, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := newRootTar(buf)
	for i, p := range nodePackages() {
		tgz := filepath.Join(work, fmt.Sprintf("npm%d.tgz", i))
		if err := p.fetch(ctx, b.Registry, tgz, b.Progress); err != nil {
			return err
		}
		if err := unpackFile(p, w, tgz); err != nil {
			return err
		}
	}
	for _, file := range b.files() {
		if dir, ok := strings.CutSuffix(file.Name, "/"); ok {
			if err := w.dir(dir); err != nil {
				return err
			}
			continue
		}
		if err := w.text(file.Name, file.Mode, file.Text); err != nil {
			return err
		}
	}
	for _, l := range rootLinks() {
		if err := w.link(l[0], l[1]); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buf.Flush(), f.Close())
}

func unpackFile(p NPM, w *rootTar, tgz string) error {
	f, err := os.Open(tgz)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.unpackInto(w, f); err != nil {
		return err
	}
	return os.Remove(tgz)
}

// mmdebstrap runs mmdebstrap: as root in the folder work, otherwise in a user namespace, whose root may not enter
// our folders and hands the results over through mmdebstrap itself.
func (b BuildConfig) mmdebstrap(ctx context.Context, work, extra string) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fmt.Errorf("%w: install the Debian package mmdebstrap", err)
	}
	args := []string{
		"--variant=apt", "--format=null", "--include=" + strings.Join(b.packages(), ","),
		`--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`,
		"--customize-hook=tar-in " + extra + " /",
		"--customize-hook=" + rootScript,
	}
	for _, o := range dpkgOptions() {
		args = append(args, "--dpkgopt="+o)
	}
	env := os.Environ()
	if os.Geteuid() == 0 {
		args = append([]string{"--mode=root"}, args...)
		env = append(env, "TMPDIR="+work, "TGR_OUT="+work)
	} else {
		args = append([]string{"--mode=unshare"}, args...)
		for _, file := range []string{rootImage, packagesFile} {
			args = append(args, "--customize-hook=download /.tgr/"+file+" "+filepath.Join(work, file))
		}
	}
	args = append(args, suite, "/dev/null")
	if b.Mirror != "" {
		args = append(args, b.Mirror)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = append(env, "LC_ALL=C")
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

// parsePackages parses lines of "name<TAB>version".
func parsePackages(s string) ([]Package, error) {
	var out []Package
	for line := range strings.Lines(s) {
		name, version, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok || name == "" || version == "" {
			return nil, fmt.Errorf("dpkg-query said %.80q, want a name and a version", line)
		}
		out = append(out, Package{name, version})
	}
	if len(out) == 0 {
		return nil, errors.New("dpkg-query listed no package")
	}
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
