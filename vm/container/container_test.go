package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
	"github.com/terraphim/tgr/vm/vmtest"
)

// agent is the agent that TestMain built.
var agent string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tgr-guest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	agent = filepath.Join(dir, "tgr-guest")
	build := exec.Command("go", "build", "-o", agent, "github.com/terraphim/tgr/cmd/tgr-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build tgr-guest: %v\n%s", err, out)
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == "owner" {
		os.Exit(owner(os.Args[2:]))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// config is one for this host, or it skips.
func config(t testing.TB) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: CONTAINERS ARE NOT TESTED: this needs root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("SKIPPED: CONTAINERS ARE NOT TESTED: ", err)
	}
	im, err := (&image.Store{}).Open(t.Context(), "")
	if errors.Is(err, image.ErrNotBuilt) {
		t.Skip("SKIPPED: CONTAINERS ARE NOT TESTED: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return Config{Root: im.Root, Overlay: im.CloneOverlay, Agent: agent, Journal: vm.Journal{Dir: filepath.Join(t.TempDir(), "journal")}, Disk: 1 << 30}
}

func open(t testing.TB, cfg Config) *Provider {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func start(t testing.TB, p *Provider, s vm.Spec) (vm.VM, *guest.Client) {
	t.Helper()
	m, err := p.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, connect(t, m)
}

// sh runs a script as root of the machine, and returns what it writes, whatever its status.
func sh(t testing.TB, c *guest.Client, script string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := guest.Cmd{Args: []string{"/bin/bash", "-c", script}, Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root"}}
	if _, err := c.Exec(t.Context(), cmd, &out); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return strings.TrimSpace(out.String())
}

func TestConformance(t *testing.T) {
	cfg := config(t)
	vmtest.Run(t, vmtest.Factory{Provider: open(t, cfg), Dir: cfg.Journal.Dir, Temp: "/tmp/vmtest", Crash: "kill -QUIT 1", OutputMB: 64, Cycles: 10, Memory: true})
}

// What a machine sees of the host, and may do to it: nothing.
func TestConfinement(t *testing.T) {
	p := open(t, config(t))
	m, c := start(t, p, vm.Spec{ID: "confined"})
	tests := []struct{ what, script, want string }{
		{"root of its own users", "id -u; cat /proc/self/uid_map | tr -s ' '", "0\n 0 300000 65536"},
		{"its own processes", "[ $(ls /proc | grep -c '^[0-9]') -lt 8 ] && cat /proc/1/comm", "tgr-guest"},
		{"its own name", "hostname", "confined"},
		{"the image's files", "stat -c '%u %g %a' /etc/shadow /bin/bash /tmp", "0 42 640\n0 0 755\n0 0 1777"},
		{"only a loopback interface", "ls /sys/class/net; cat /sys/class/net/lo/operstate", "lo\nunknown"},
		{"no new privileges", "grep NoNewPrivs /proc/self/status | tr -s '\\t' ' '", "NoNewPrivs: 1"},
		{"a seccomp filter", "grep -w Seccomp: /proc/self/status | tr -s '\\t' ' '", "Seccomp: 2"},
		{"few capabilities", "grep CapBnd /proc/self/status | tr -s '\\t' ' '", "CapBnd: 00000000800405fb"},
		{"no mounts", "mount -t tmpfs x /tmp 2>&1 | grep -o 'permission denied'", "permission denied"},
		{"no kernel modules", "python3 - 2>&1 <<< 'import ctypes; l=ctypes.CDLL(None,use_errno=True); print(l.syscall(175,0,0,0), ctypes.get_errno())' || true", "-1 1"},
		{"no new user namespaces with mounts", "unshare -Ur true 2>&1 | grep -o 'Operation not permitted'", "Operation not permitted"},
		{"no device nodes", "mknod /tmp/sda b 8 0 2>&1 | grep -o 'Operation not permitted'", "Operation not permitted"},
		{"no kernel settings", "for f in sys/kernel/panic sys/vm/drop_caches; do { echo 1 > /proc/$f; } 2>&1 | grep -o 'Read-only file system'; done", "Read-only file system\nRead-only file system"},
		{"no control groups", "mkdir /sys/fs/cgroup/memory/x 2>&1 | grep -o 'Read-only file system'; mkdir /sys/fs/cgroup/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system"},
		{"no kernel log", "dmesg 2>&1 | grep -o 'Operation not permitted'", "Operation not permitted"},
		{"no clock", "date -s 2001-01-01 2>&1 | grep -o 'Operation not permitted'", "Operation not permitted"},
		{"no disks of the host", "ls /dev | tr '\\n' ' '", "fd full mqueue null ptmx pts random shm stderr stdin stdout tgr-guest tty urandom zero"},
		{"no server's secrets", "tr '\\0' '\\n' < /proc/1/environ | grep -c TGR || true", "0"},
		{"users of its own", "useradd -m worker && su worker -c 'id -un; touch ~/x && stat -c %U ~/x'", "worker\nworker"},
		{"a limit of its disk", "[ $(df --output=size -BM / | tail -1 | tr -dc 0-9) -le 1024 ] && echo limited", "limited"},
	}
	for _, tt := range tests {
		got := sh(t, c, tt.script)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", tt.what, tt.script, diff)
		}
	}
	// A second machine sees nothing of the first, and the image stays as it was.
	sh(t, c, "echo changed > /etc/issue; echo secret > /root/secret; sleep 1000 >/dev/null 2>&1 &")
	_, other := start(t, p, vm.Spec{ID: "other"})
	if got := sh(t, other, "grep -c changed /etc/issue; ls /root/secret 2>/dev/null; pgrep sleep; true"); got != "0" {
		t.Errorf("a second machine sees %q of the first", got)
	}
	if info := m.(vm.Infoer).Info(); info.Isolation != "container" {
		t.Errorf("info %+v", info)
	}
}

// A machine that takes more than it has ends, or is refused it, and nobody else's is.
func TestLimits(t *testing.T) {
	cfg := config(t)
	cfg.PIDs = 200
	p := open(t, cfg)
	_, c := start(t, p, vm.Spec{ID: "limited", Memory: 128 << 20, Disk: 64 << 20})
	if got := sh(t, c, "(for i in $(seq 500); do sleep 100 >/dev/null & done) 2>&1 | grep -o -m1 'Resource temporarily unavailable'; true"); !strings.Contains(got, "Resource temporarily unavailable") {
		t.Errorf("500 processes: %q", got)
	}
	sh(t, c, "exec pkill sleep") // there may be room for no more than this process
	if got := sh(t, c, "{ head -c 200M /dev/zero > /big; } 2>&1 | grep -o 'No space left'; stat -c %s /big"); len(got) > len("No space left\n67108864") || !strings.Contains(got, "No space left") {
		t.Errorf("a file of 200 MB: %q", got)
	}
	sh(t, c, "rm /big")
	if got := sh(t, c, `head -c 300M /dev/zero | tail -c 299M > /dev/null; echo "${PIPESTATUS[@]}"`); !strings.Contains(got, "137") {
		t.Errorf("300 MB of memory: %q, want a process that was killed", got)
	}
	_, c2 := start(t, p, vm.Spec{ID: "second", Memory: 128 << 20})
	if got := sh(t, c2, "echo alive"); got != "alive" {
		t.Error(got)
	}
}

// A server that is killed leaves a machine, and the next one finds and frees all of it.
func TestReap(t *testing.T) {
	cfg := config(t)
	before := hostState(t)
	orphan := killOwner(t, cfg)
	reaped, err := cfg.Journal.Reap(t.Context(), nil)
	if err != nil || len(reaped) != 1 || reaped[0].Err != nil {
		t.Errorf("reaped %+v, %v", reaped, err)
	}
	if orphan.Alive() {
		t.Error("the agent is alive")
	}
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("the host (-before +after):\n%s", diff)
	}
}

// hostState is what machines could leave on the host: mounts, control groups.
func hostState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, " /run/netns/") { // which come and go with the tests of other packages
			state["mounts"] += line
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/tgr/reaped*")
	unified, _ := filepath.Glob("/sys/fs/cgroup/tgr/reaped*")
	state["cgroups"] = strings.Join(append(groups, unified...), "\n")
	return state
}

// owner is a server that is about to be killed.
func owner(args []string) int {
	p, err := New(Config{Root: args[1], Agent: agent, Journal: vm.Journal{Dir: args[0]}, Disk: 64 << 20,
		Overlay: func(ctx context.Context, path string, size int64) error {
			f, err := os.Create(path)
			if err != nil {
				return err
			}
			if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
				return err
			}
			return exec.CommandContext(ctx, "mkfs.ext4", "-q", path).Run()
		}})
	if err == nil {
		var m vm.VM
		if m, err = p.Start(context.Background(), vm.Spec{ID: "reaped"}); err == nil {
			fmt.Println(m.(vm.Infoer).Info().PID)
			select {}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// A machine's network is its slot, by whose rules it lives.
func TestNetwork(t *testing.T) {
	cfg := config(t)
	w := networktest.New(t, network.Config{Ready: 2, Inner: true})
	w.Name("example.com", networktest.Web)
	cfg.Slots = w.Pool
	m, c := start(t, open(t, cfg), vm.Spec{ID: "networked"})
	const fetch = "curl -sS -m 5 -o /dev/null -w '%{http_code}' "
	if got := sh(t, c, fetch+"http://example.com/ 2>/dev/null; true"); got != "000" {
		t.Errorf("before it has a policy: %q", got)
	}
	if err := m.(vm.Networked).SetEgress("job", vm.Egress{Mode: vm.EgressOpen}); err != nil {
		t.Fatal(err)
	}
	for script, want := range map[string]string{
		fetch + "http://example.com/ 2>/dev/null; true":                 "200",
		fetch + "http://169.254.169.254/ 2>/dev/null; true":             "000",
		fetch + "http://" + networktest.HostLAN + "/ 2>/dev/null; true": "000",
		"cat /etc/resolv.conf":                                          "nameserver " + network.Gateway().String(),
	} {
		if got := sh(t, c, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

func TestStartErrors(t *testing.T) {
	cfg := config(t)
	cfg.Runtime = filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(cfg.Runtime, []byte("#!/bin/sh\necho this host has no cgroups >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := open(t, cfg)
	_, err := p.Start(t.Context(), vm.Spec{ID: "broken"})
	var infra *vm.InfraError
	if !errors.As(err, &infra) || !strings.Contains(err.Error(), "this host has no cgroups") {
		t.Errorf("a runtime that fails: %v", err)
	}
	if left, err := cfg.Journal.List(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Start(t.Context(), vm.Spec{ID: "late"}); err == nil || !strings.Contains(err.Error(), "the provider was closed") {
		t.Errorf("after Close: %v", err)
	}
	for want, change := range map[string]func(*Config){
		"not complete": func(c *Config) { c.Agent = "" },
		"runc":         func(c *Config) { c.Runtime = "/nonesuch/runc" },
		"not root":     func(c *Config) { c.IDs = [2]int{0, 10} },
		"nonesuch":     func(c *Config) { c.Root = "/nonesuch" },
	} {
		c := cfg
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	p := open(b, config(b))
	for i := 0; b.Loop(); i++ {
		m, err := p.Start(b.Context(), vm.Spec{ID: fmt.Sprint("bench-", i)})
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
