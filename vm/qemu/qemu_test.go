package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
	"github.com/terraphim/tgr/vm/vmtest"
)

// env is a job's environment in our image.
func env() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// goBuild builds a static program of this module.
func goBuild(dir, pkg string) (string, error) {
	out := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, msg)
	}
	return out, nil
}

// built is the image that all tests share; its root filesystem is kept between runs.
var built = sync.OnceValues(func() (*image.Image, error) {
	dir, err := os.MkdirTemp("", "tgr-qemu-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	agent, err := goBuild(dir, "github.com/terraphim/tgr/cmd/tgr-guest")
	if err != nil {
		return nil, err
	}
	last := ""
	return (&image.Store{}).Build(context.Background(), image.BuildConfig{
		Agent: agent,
		Progress: func(step string, done, total int64) {
			if step != last {
				fmt.Fprintln(os.Stderr, "image:", step)
			}
			last = step
		},
	})
})

// config is that of a provider with a journal of its own. Without QEMU or a kernel the test fails: what needs no
// machine is tested with -short.
func config(t testing.TB) qemu.Config {
	t.Helper()
	if testing.Short() {
		t.Skip("boots virtual machines")
	}
	im, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return qemu.Config{
		Image:   qemu.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay},
		Journal: vm.Journal{Dir: filepath.Join(t.TempDir(), "machines")},
		Memory:  512 << 20,
		Disk:    2 << 30,
	}
}

func provider(t testing.TB, cfg qemu.Config) *qemu.Provider {
	t.Helper()
	p, err := qemu.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start boots a machine and connects to its agent.
func start(t testing.TB, p *qemu.Provider, id string) (vm.VM, *guest.Client) {
	t.Helper()
	m, err := p.Start(t.Context(), vm.Spec{ID: id})
	if err != nil {
		t.Fatal(withConsole(err))
	}
	t.Cleanup(func() { m.Close() })
	return m, connect(t, m)
}

func connect(t testing.TB, m vm.VM) *guest.Client {
	t.Helper()
	conn, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(t.Context(), conn)
	if err != nil {
		t.Fatalf("%v; console:\n%s", err, m.(vm.Infoer).Info().Console)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func withConsole(err error) string {
	var boot *vm.BootError
	if errors.As(err, &boot) {
		return fmt.Sprintf("%v; console:\n%s", err, boot.Console)
	}
	return err.Error()
}

// run runs a command in the guest and returns what it wrote.
func run(t testing.TB, c *guest.Client, script string) string {
	t.Helper()
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-ec", script}, Env: env()}, &out)
	if err != nil || !exit.Success() {
		t.Fatalf("%s: %+v, %v\n%s", script, exit, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// nothingLeft checks that a journal's machines are gone: folders and processes.
func nothingLeft(t testing.TB, j vm.Journal) {
	t.Helper()
	left, err := os.ReadDir(j.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range left {
		t.Errorf("%s is left in the journal", e.Name())
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, p := range procs {
		if dir, err := os.Readlink(p); err == nil && strings.HasPrefix(dir, j.Dir) {
			t.Errorf("%s is left running in %s", p, dir)
		}
	}
}

// TestConformance runs the suite of all providers. The guest's code is emulated where KVM does not work: the
// amounts are for that.
func TestConformance(t *testing.T) {
	cfg := config(t)
	vmtest.Run(t, vmtest.Factory{
		Provider: provider(t, cfg), Dir: cfg.Journal.Dir, Temp: "/var/tmp/vmtest", Memory: true,
		Crash:  "kill -QUIT 1", // of PID 1 the kernel lets through only signals that it handles
		Cycles: cycles(), OutputMB: 64, Within: 4 * time.Minute,
	})
}

// cycles is how many machines are made and destroyed in a row: few, but TGR_VM_CYCLES says otherwise.
func cycles() int {
	n, err := strconv.Atoi(os.Getenv("TGR_VM_CYCLES"))
	if err != nil || n < 1 {
		return 3
	}
	return n
}

// TestGuest looks at the machine from the inside.
func TestGuest(t *testing.T) {
	cfg := config(t)
	p := provider(t, cfg)
	m, c := start(t, p, "inside")
	var host unix.Utsname
	unix.Uname(&host)
	if got := run(t, c, "uname -r"); got == unix.ByteSliceToString(host.Release[:]) || !strings.Contains(got, "cloud-amd64") {
		t.Errorf("kernel %s in the guest, %s on the host", got, unix.ByteSliceToString(host.Release[:]))
	}
	for script, want := range map[string]string{
		"id -un":                    "root",
		"sudo -u runner sudo id -u": "0",
		"stat -c %U:%a /home/runner/work /tmp /opt/hostedtoolcache":                   "runner:755\nroot:1777\nrunner:755",
		"findmnt -no FSTYPE / 2>/dev/null || awk '$2==\"/\" {print $3}' /proc/mounts": "overlay",
		"ip -br link":                                                                 "lo               UNKNOWN        00:00:00:00:00:00 <LOOPBACK,UP,LOWER_UP>",
		"cat <(echo substitution)":                                                    "substitution",
		"cat /etc/machine-id":                                                         "",
		"ls /etc/ssh/ssh_host_* 2>/dev/null | wc -l":                                  "0",
		"/opt/node20/bin/node -p process.version | cut -d. -f1":                       "v20",
		"stat -c %a /dev/shm /dev/pts/ptmx":                                           "1777\n666",
		"cd /tmp && mkdir a && mv a b && ls -d b":                                     "b",
		"mv /usr/share/perl5 /usr/share/perl6 && ls -d /usr/share/perl6":              "/usr/share/perl6",
		"python3 -c 'import json,ssl; print(1)'":                                      "1",
		"python -c 'print(2)'":                                                        "2",
		"stat -f -c %T " + c.Hello().Scratch + "; stat -c %U:%a " + c.Hello().Scratch: "tmpfs\nrunner:755",
		"for p in git curl tar gzip xz zstd unzip jq ps ssh; do command -v $p >/dev/null || echo $p; done": "",
	} {
		begin := time.Now()
		if got := run(t, c, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
		t.Logf("%6dms %s", time.Since(begin).Milliseconds(), script)
	}
	if seconds, err := strconv.ParseInt(run(t, c, "date +%s"), 10, 64); err != nil || time.Since(time.Unix(seconds, 0)).Abs() > time.Minute {
		t.Errorf("the guest's clock says %d, %v; the host's %d", seconds, err, time.Now().Unix())
	}
	info := m.(vm.Infoer).Info()
	if info.ID != "inside" || info.PID == 0 || info.Boot <= 0 || !strings.HasPrefix(info.Isolation, "qemu (") {
		t.Errorf("info: %+v", info)
	}
	if fi, err := os.Stat(fmt.Sprintf("/proc/%d", info.PID)); err != nil || fi.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Errorf("QEMU runs as root: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
}

func TestPowerOff(t *testing.T) {
	cfg := config(t)
	m, c := start(t, provider(t, cfg), "off")
	go c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "echo o > /proc/sysrq-trigger"}, Env: env()}, &bytes.Buffer{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.Wait(ctx); err != nil {
		t.Errorf("Wait: %v, want nil after the guest powered off", err)
	}
	if _, err := m.Dial(ctx); err == nil {
		t.Error("a machine that has ended was dialled")
	}
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
}

func TestGuestPanics(t *testing.T) {
	cfg := config(t)
	m, c := start(t, provider(t, cfg), "panic")
	go c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "echo c > /proc/sysrq-trigger"}, Env: env()}, &bytes.Buffer{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := m.Wait(ctx)
	var boot *vm.BootError
	if !errors.As(err, &boot) || !strings.Contains(boot.Console, "Kernel panic") {
		t.Errorf("Wait: %s, want a BootError whose console tells of the panic", withConsole(err))
	}
	m.Close()
	nothingLeft(t, cfg.Journal)
}

func TestKilled(t *testing.T) {
	cfg := config(t)
	m, c := start(t, provider(t, cfg), "killed")
	syscall.Kill(m.(vm.Infoer).Info().PID, syscall.SIGKILL)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var infra *vm.InfraError
	if err := m.Wait(ctx); !errors.As(err, &infra) || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Wait: %v, want an InfraError that names the signal", err)
	}
	if _, err := c.Exec(ctx, guest.Cmd{Args: []string{"true"}, Env: env()}, &bytes.Buffer{}); !errors.Is(err, guest.ErrLost) {
		t.Errorf("Exec: %v, want ErrLost", err)
	}
	m.Close()
	nothingLeft(t, cfg.Journal)
}

// TestRedial begins a second stream, which ends the first; the machine goes on.
func TestRedial(t *testing.T) {
	m, first := start(t, provider(t, config(t)), "redial")
	run(t, first, "echo kept > /tmp/file")
	second := connect(t, m)
	if got := run(t, second, "cat /tmp/file"); got != "kept" {
		t.Errorf("got %q", got)
	}
	select {
	case <-first.Done():
	case <-time.After(time.Minute):
		t.Error("the first stream goes on")
	}
}

func TestConsoleFlood(t *testing.T) {
	m, c := start(t, provider(t, config(t)), "noisy")
	run(t, c, "head -c 40000 /dev/zero | tr '\\0' 'x' > /dev/ttyS0; echo last words > /dev/ttyS0")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for { // the guest's kernel writes to its serial line behind the program's back
		got := m.(vm.Infoer).Info().Console
		if len(got) > 16<<10 {
			t.Fatalf("kept %d bytes of the console", len(got))
		}
		if strings.Contains(got, "last words") {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the last words did not arrive; console: %.100q", got)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestOutlivesServer kills a server with -9: the machine goes on until the next one reaps it.
func TestOutlivesServer(t *testing.T) {
	cfg := config(t)
	killServer(t, cfg.Journal.Dir)
	entries, err := cfg.Journal.List()
	if err != nil || len(entries) != 1 || len(entries[0].Processes) != 1 || !entries[0].Processes[0].Alive() {
		t.Errorf("journal: %+v, %v: want one machine that is alive", entries, err)
	}
	// It goes on also when it has something to say to a console that nobody reads any more.
	conn, err := net.Dial("unix", filepath.Join(cfg.Journal.Dir, "orphan", "agent"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	run(t, c, "for i in $(seq 100); do echo is anybody there > /dev/ttyS0; done; stty -F /dev/ttyS0 sane")
	run(t, c, "true")
	reaped, err := cfg.Journal.Reap(t.Context(), nil)
	if err != nil || len(reaped) != 1 || reaped[0].Err != nil {
		t.Errorf("reaped %+v, %v", reaped, err)
	}
	nothingLeft(t, cfg.Journal)
}

// TestServerThatDies is the other half of TestOutlivesServer.
func TestServerThatDies(t *testing.T) {
	dir := os.Getenv("TGR_QEMU_JOURNAL")
	if dir == "" {
		t.Skip("run by TestOutlivesServer")
	}
	cfg := config(t)
	cfg.Journal.Dir = dir
	m, err := provider(t, cfg).Start(t.Context(), vm.Spec{ID: "orphan"})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("started")
	m.Wait(t.Context())
}

// BenchmarkColdBoot is the time from Start to the answer of the first command.
func BenchmarkColdBoot(b *testing.B) {
	p := provider(b, config(b))
	for i := 0; b.Loop(); i++ {
		m, c := start(b, p, fmt.Sprintf("boot-%d", i))
		run(b, c, "true")
		c.Close()
		m.Close()
	}
}
