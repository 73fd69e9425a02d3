package runner_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/qemu"
)

// TestEngineScenarios runs the jobs of testdata/engine/*.txtar in a virtual machine of the full image, whose container
// engine has one image, localhost/busy:1, and whose loopback has a registry at port 5000. The files are those of TestScenarios. The jobs share the machine, because it
// takes longer to boot than they do to run; what one leaves behind, others would find.
func TestEngineScenarios(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine and starts containers in it")
	}
	files, err := filepath.Glob("testdata/engine/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	m := fullMachine(t)
	loadBusy(t, m)
	own, err := m.Listen(t.Context(), "127.0.0.1:5000")
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(own, newGuarded(t))
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := engineScenario(t, a, m)
			begin := time.Now()
			res, err := runner.Run(s.ctx, s.config, s.job)
			t.Logf("took %v", time.Since(begin).Round(time.Millisecond))
			got := inEngine(s.show(res, err))
			checkClean(t, m)
			if *update {
				setFile(a, "want", got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(find(a, "want")), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// engineScenario is a scenario in a machine of the full image.
func engineScenario(t *testing.T, a *txtar.Archive, m runner.Machine) *scenario {
	t.Helper()
	s := newScenario(t, a)
	const node20, node24 = "/opt/node20/bin/node", "/opt/node24/bin/node"
	s.config.Machine, s.config.User = m, "runner"
	s.config.Dirs = runner.Dirs{Commands: scratchOf(t, m)}
	s.config.Nodes = map[string]string{"node20": node20, "node24": node24}
	s.config.Env, s.config.Engines = map[string]string{"LANG": "C.UTF-8"}, []string{"podman", "docker"}
	s.base = "/home/runner"
	return s
}

// scratchOf is where a job keeps its command files: in the machine's memory, as the dispatcher has it.
func scratchOf(t *testing.T, m runner.Machine) string {
	t.Helper()
	scratch := m.(interface{ Hello() guest.Hello }).Hello().Scratch
	if scratch == "" {
		t.Fatal("the machine has no folder in memory")
	}
	return path.Join(scratch, t.Name(), "_runner_file_commands")
}

var (
	longID = regexp.MustCompile(`\b[0-9a-f]{64}\b|--> [0-9a-f]{8,12}\b`)
	stamp  = regexp.MustCompile(`time="[^"]*"`)
	took   = regexp.MustCompile(`\b\d+(\.\d+)?s\b`)
	port   = regexp.MustCompile(`\b[3-6]\d{4}\b`)
	inNet  = regexp.MustCompile(`\b10\.89\.\d+\.\d+\b`) // of a network of the engine's
)

// inEngine hides what differs from run to run.
func inEngine(s string) string {
	s = inNet.ReplaceAllString(s, "ADDRESS")
	return port.ReplaceAllString(took.ReplaceAllString(longID.ReplaceAllString(stamp.ReplaceAllString(s, "TIME"), "ID"), "Ns"), "PORT")
}

// checkClean fails if a job has left containers or networks of its own.
func checkClean(t *testing.T, m runner.Machine) {
	t.Helper()
	if got := inMachine(t, m, "podman ps -aq; podman network ls -q --filter label=tgr; ls -d /home/runner/work/_temp/tgr_* 2>/dev/null; true"); got != "" {
		t.Errorf("left behind:\n%s", got)
	}
}

func inMachine(t *testing.T, m runner.Machine, script string) string {
	t.Helper()
	var out bytes.Buffer
	exit, err := m.Exec(t.Context(), guest.Cmd{Args: []string{"/bin/bash", "-c", script},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}}, &out)
	if err != nil || !exit.Success() {
		t.Fatalf("%s: %+v, %v\n%s", script, exit, err, &out)
	}
	return out.String()
}

// fullMachine boots a machine of the full image, which it builds first if need be.
func fullMachine(t *testing.T) *guest.Client {
	t.Helper()
	_, c := fullMachineIn(t, nil)
	return c
}

// fullMachineIn is fullMachine with a network.
func fullMachineIn(t *testing.T, slots *network.Pool) (vm.VM, *guest.Client) {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "tgr-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", agent, "github.com/terraphim/tgr/cmd/tgr-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	im, err := (&image.Store{}).Build(t.Context(), image.BuildConfig{Name: "full", Full: true, Agent: agent})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	p, err := qemu.New(qemu.Config{
		Image:   qemu.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay},
		Journal: vm.Journal{Dir: t.TempDir()}, Slots: slots,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context())
	m, err := p.Start(ctx, vm.Spec{ID: "engine", VCPUs: 2, Memory: 2 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	conn, err := m.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return m, c
}

// loadBusy gives the machine's engine the image localhost/busy:1: Debian's busybox, without a C library.
func loadBusy(t *testing.T, m runner.Machine) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install the Debian package busybox-static (scripts/setup test)", err)
	}
	var b bytes.Buffer
	ref, err := name.NewTag("localhost/busy:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.Write(ref, busyImage(t, busybox), &b); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	w.WriteHeader(&tar.Header{Name: "busy.tar", Size: int64(b.Len()), Mode: 0o644})
	w.Write(b.Bytes())
	w.Close()
	if err := m.Put(t.Context(), "/var/tmp", &archive); err != nil {
		t.Fatal(err)
	}
	inMachine(t, m, "podman load -q -i /var/tmp/busy.tar")
}

func busyImage(t *testing.T, busybox []byte) v1.Image {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	dir := func(name string, mode int64) {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode})
	}
	file := func(name, data string, mode int64) {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))})
		io.WriteString(w, data)
	}
	for _, d := range []string{"bin", "etc", "root", "usr", "usr/bin"} {
		dir(d, 0o755)
	}
	dir("tmp", 0o1777)
	file("bin/busybox", string(busybox), 0o755)
	for _, applet := range strings.Fields("sh ls cat echo env id sleep wget httpd true false mkdir touch hostname tail head grep test pwd tr sort nc stat basename") {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777})
	}
	file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nmona:x:1000:1000::/tmp:/bin/sh\n", 0o644)
	file("etc/group", "root:x:0:\nmona:x:1000:\n", 0o644)
	w.Close()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	im, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/bin:/usr/bin:/from/image", "FROM_IMAGE=yes"}, Cmd: []string{"sh"}}})
	if err != nil {
		t.Fatal(err)
	}
	if im, err = mutate.AppendLayers(im, l); err != nil {
		t.Fatal(err)
	}
	return im
}
