package qemu_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// limited is warmConfig with limits on the host, where they can be had.
func limited(t *testing.T) qemu.Config {
	t.Helper()
	cfg, _ := warmConfig(t)
	if os.Geteuid() != 0 {
		t.Log("NOT TESTED: limits on the host, which need root")
		return cfg
	}
	groups, err := vm.FindCgroups()
	if err != nil {
		t.Logf("NOT ALL LIMITS TESTED: %v", err)
	}
	cfg.Cgroups = groups
	return cfg
}

// TestChaos has jobs do their worst: each ends alone and says why, and another machine does not notice.
func TestChaos(t *testing.T) {
	cfg := limited(t)
	p := warmed(t, cfg, vm.Spec{})
	bystander, c := start(t, p, "bystander")
	for name, chaos := range map[string]func(t *testing.T, m vm.VM, c *guest.Client){
		"kernel panic":  kernelPanic,
		"out of memory": outOfMemory,
		"fork bomb":     forkBomb,
		"log flood":     logFlood,
	} {
		t.Run(name, func(t *testing.T) {
			m, victim := start(t, p, "victim-"+strings.ReplaceAll(name, " ", "-"))
			chaos(t, m, victim)
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if got := run(t, c, "echo fine"); got != "fine" {
				t.Errorf("another machine says %q", got)
			}
		})
	}
	if err := bystander.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
	noCgroups(t)
}

// noCgroups looks for groups of machines that this process has made.
func noCgroups(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"bystander-*", "victim-*", "eats-*"} {
		left, _ := filepath.Glob("/sys/fs/cgroup/*/tgr/" + pattern)
		more, _ := filepath.Glob("/sys/fs/cgroup/tgr/" + pattern)
		for _, dir := range append(left, more...) {
			t.Errorf("%s is left", dir)
		}
	}
}

func kernelPanic(t *testing.T, m vm.VM, c *guest.Client) {
	_, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"}, Env: env()}, nil)
	if !errors.Is(err, guest.ErrLost) {
		t.Errorf("the command: %v", err)
	}
	var boot *vm.BootError
	if err := m.Wait(t.Context()); !errors.As(err, &boot) || !strings.Contains(err.Error(), "kernel panicked: sysrq triggered crash") {
		t.Errorf("the machine: %v", err)
	}
}

func outOfMemory(t *testing.T, _ vm.VM, c *guest.Client) {
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "tail /dev/zero"}, Env: env()}, nil)
	if err != nil || exit.Code != 137 || exit.Shortage != guest.OutOfMemory {
		t.Errorf("%+v, %v", exit, err)
	}
	exit, err = c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "exit 3"}, Env: env()}, nil)
	if err != nil || exit.Code != 3 || exit.Shortage != "" {
		t.Errorf("the next command: %+v, %v", exit, err)
	}
}

// forkBomb fills the machine with processes: the agent ends them, says why, and has room for what comes next.
func forkBomb(t *testing.T, _ vm.VM, c *guest.Client) {
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "b() { b | b & }; b; sleep 1000"}, Env: env()}, nil)
	if err != nil || exit.Signal != "SIGKILL" || exit.Shortage != guest.OutOfProcesses {
		t.Errorf("%+v, %v", exit, err)
	}
	t.Logf("it ended after %v", exit.Duration.Round(time.Millisecond))
	run(t, c, "until [ $(cat /sys/fs/cgroup/tgr-job/pids.current) -lt 10 ]; do sleep 0.1; done") // the others of hundreds go, too
	exit, err = c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "exit 4"}, Env: env()}, nil)
	if err != nil || exit.Code != 4 || exit.Shortage != "" {
		t.Errorf("the next command: %+v, %v", exit, err)
	}
}

func logFlood(t *testing.T, _ vm.VM, c *guest.Client) {
	var n countingWriter
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "yes | head -c 20000000; echo end >&2"}, Env: env()}, &n)
	if err != nil || !exit.Success() || n != 20000004 {
		t.Errorf("%d bytes, %+v, %v", n, exit, err)
	}
}

type countingWriter int

func (w *countingWriter) Write(b []byte) (int, error) {
	*w += countingWriter(len(b))
	return len(b), nil
}

// TestFullDisk fills the disk: the machine goes on, and whoever writes is told.
func TestFullDisk(t *testing.T) {
	m, err := provider(t, config(t)).Start(t.Context(), vm.Spec{ID: "full", Disk: 64 << 20})
	if err != nil {
		t.Fatal(withConsole(err))
	}
	defer m.Close()
	c := connect(t, m)
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "head -c 100000000 /dev/zero > /var/tmp/big"}, Env: env()}, &out)
	if err != nil || exit.Success() || exit.Shortage != guest.OutOfDisk || !strings.Contains(out.String(), "No space left on device") {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	if got := run(t, c, "rm /var/tmp/big; echo more > /var/tmp/small; cat /var/tmp/small"); got != "more" {
		t.Errorf("afterwards: %q", got)
	}
}

// TestTooManyFiles makes as many files as the disk can have: who makes another is told, and why, and that is all.
func TestTooManyFiles(t *testing.T) {
	p := provider(t, config(t))
	begin := func(id string) *guest.Client {
		m, err := p.Start(t.Context(), vm.Spec{ID: id, Disk: 64 << 20})
		if err != nil {
			t.Fatal(withConsole(err))
		}
		t.Cleanup(func() { m.Close() })
		return connect(t, m)
	}
	c, bystander := begin("many-files"), begin("few-files")
	var out bytes.Buffer
	const fill = "mkdir /var/tmp/many; cd /var/tmp/many; for ((i = 0; i < 1000000; i++)); do : > $i || exit 1; done"
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", fill}, Env: env()}, &out)
	if err != nil || exit.Success() || exit.Shortage != guest.OutOfFiles || !strings.Contains(out.String(), "No space left on device") {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	if got := run(t, bystander, "echo more > /var/tmp/small; cat /var/tmp/small"); got != "more" {
		t.Errorf("another machine: %q", got)
	}
	if got := run(t, c, "rm -r /var/tmp/many; echo more > /var/tmp/small; cat /var/tmp/small"); got != "more" {
		t.Errorf("afterwards: %q", got)
	}
	exit, err = c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "exit 3"}, Env: env()}, nil)
	if err != nil || exit.Code != 3 || exit.Shortage != "" {
		t.Errorf("the next command: %+v, %v", exit, err)
	}
}

// TestTooMuchMemory has the emulator, not the guest, take more than its limit: its end says so.
func TestTooMuchMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: limits on the host need root")
	}
	cfg := limited(t)
	m, c := start(t, warmed(t, cfg, vm.Spec{}), "eats")
	defer m.Close()
	groups, _ := filepath.Glob("/sys/fs/cgroup/memory/tgr/eats-*/memory.limit_in_bytes")
	if v2, _ := filepath.Glob("/sys/fs/cgroup/tgr/eats-*/memory.max"); len(groups) == 0 {
		groups = v2
	}
	if len(groups) != 1 {
		t.Skipf("NOT TESTED: groups %v", groups)
	}
	if err := os.WriteFile(groups[0], []byte("90000000"), 0); err != nil {
		t.Fatal(err)
	}
	c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "head -c 300000000 /dev/urandom > /dev/shm/x; sleep 1000"}, Env: env()}, nil)
	var infra *vm.InfraError
	if err := m.Wait(t.Context()); !errors.As(err, &infra) || !strings.Contains(err.Error(), "out of memory") {
		t.Errorf("got %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	noCgroups(t)
}
