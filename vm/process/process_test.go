package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
	"github.com/terraphim/tgr/vm/vmtest"
)

// agentPath is the agent that TestMain built.
var agentPath string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tgr-guest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	agentPath = filepath.Join(dir, "tgr-guest")
	build := exec.Command("go", "build", "-o", agentPath, "github.com/terraphim/tgr/cmd/tgr-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build tgr-guest: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// What a job puts into sessions of its own and orphans twice over goes with its machine.
func TestDaemon(t *testing.T) {
	_, m, c := start(t)
	daemon := started(t, c, "setsid sh -c 'setsid sh -c \"echo \\$\\$; exec sleep 1000\" & exit' & wait; sleep 0.1")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if daemon.Alive() {
		t.Error("the daemon is alive")
	}
}

// started is the process whose number a script prints.
func started(t *testing.T, c *guest.Client, script string) vm.Process {
	t.Helper()
	var out bytes.Buffer
	exit, err := c.Exec(context.Background(), guest.Cmd{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}, &out)
	if err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	p, err := vm.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The agent buries the orphans that it inherits.
func TestZombies(t *testing.T) {
	_, _, c := start(t)
	var out bytes.Buffer
	exit, err := c.Exec(context.Background(), guest.Cmd{
		Args: []string{"/bin/sh", "-c", "for i in 1 2 3 4 5; do (sleep 0 &); done; echo $PPID"},
		Env:  []string{"PATH=/usr/bin:/bin"},
	}, &out)
	if err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	agent := strings.TrimSpace(out.String())
	for {
		// Only ps itself and the shell that asks are the agent's children in the end.
		out.Reset()
		exit, err := c.Exec(context.Background(), guest.Cmd{
			Args: []string{"/bin/sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z " + agent + " '"},
			Env:  []string{"PATH=/usr/bin:/bin"},
		}, &out)
		if err != nil {
			t.Fatal(err)
		}
		if exit.Code == 1 && out.String() == "0\n" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A broken agent is the host's fault, or a machine that did not come up.
func TestBrokenAgent(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	for _, argv := range [][]string{nil, {"/nonesuch"}} {
		_, err := process.New(process.Config{Agent: argv, Dir: dir}).Start(ctx, vm.Spec{ID: "broken"})
		var infra *vm.InfraError
		if !errors.As(err, &infra) {
			t.Errorf("agent %q: %v, want *vm.InfraError", argv, err)
		}
	}
	m, err := process.New(process.Config{Agent: []string{"/bin/sh", "-c", "echo I am not well >&2; exit 3"}, Dir: dir}).Start(ctx, vm.Spec{ID: "broken"})
	if err != nil {
		t.Fatal(err)
	}
	err = m.Wait(ctx)
	var boot *vm.BootError
	if !errors.As(err, &boot) || boot.Console != "I am not well\n" || boot.ID != "broken" {
		t.Errorf("wait: %#v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestTaken(t *testing.T) {
	p, _, _ := start(t)
	if _, err := p.Start(context.Background(), vm.Spec{ID: "test"}); !errors.Is(err, vm.ErrMachineExists) {
		t.Errorf("got %v, want ErrMachineExists", err)
	}
	if _, err := p.Start(context.Background(), vm.Spec{ID: "../x"}); err == nil {
		t.Error("an id with a path was accepted")
	}
}

// A machine under a long path can be dialled all the same.
func TestLongPath(t *testing.T) {
	p := process.New(process.Config{Agent: []string{agentPath}, Dir: filepath.Join(t.TempDir(), strings.Repeat("long/", 40))})
	m, err := p.Start(context.Background(), vm.Spec{ID: strings.Repeat("x", 64)})
	if err != nil {
		t.Fatal(err)
	}
	if home := m.(*process.Machine).Home(); home == "" {
		t.Error("no home")
	} else if list, err := os.ReadDir(home); err != nil || len(list) != 0 {
		t.Errorf("home: %v, %v", list, err)
	}
	connect(t, m).Close()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// Asked to end, the agent ends well: the machine powered off.
func TestPowerOff(t *testing.T) {
	_, m, _ := start(t)
	pid := m.(vm.Infoer).Info().PID
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(context.Background()); err != nil {
		t.Errorf("wait: %v", err)
	}
}

func TestMachine(t *testing.T) {
	ctx := context.Background()
	p := process.New(process.Config{Agent: []string{agentPath}, Dir: t.TempDir()})
	m, err := p.Start(ctx, vm.Spec{ID: "one"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := m.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	exit, err := c.Exec(ctx, guest.Cmd{Args: []string{"/bin/sh", "-c", "echo hello; (setsid sleep 1000 >/dev/null 2>&1 &)"}}, &out)
	if err != nil || !exit.Success() || out.String() != "hello\n" {
		t.Errorf("%+v, %v, %q", exit, err, &out)
	}
	c.Close()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Wait(ctx); err != nil {
		t.Error(err)
	}
}

func TestConformance(t *testing.T) {
	for _, guard := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard=%v", guard), func(t *testing.T) {
			dir := t.TempDir()
			vmtest.Run(t, vmtest.Factory{
				Provider: process.New(process.Config{Agent: []string{agentPath}, Dir: dir, Guard: guard}),
				Dir:      dir,
				Temp:     filepath.Join(t.TempDir(), "vmtest"),
				Crash:    "kill -9 $PPID",
				Cycles:   100,
			})
		})
	}
}

// What a job leaves when it kills its agent goes with its machine, though nothing tells of whom it is, and what another
// machine's job has started stays.
func TestGuard(t *testing.T) {
	for _, guard := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard=%v", guard), func(t *testing.T) {
			ctx := context.Background()
			p := process.New(process.Config{Agent: []string{agentPath}, Dir: t.TempDir(), Guard: guard})
			var left [2]vm.Process
			var machines [2]vm.VM
			for i := range machines {
				m, err := p.Start(ctx, vm.Spec{ID: fmt.Sprint("machine-", i)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { m.Close() })
				machines[i], left[i] = m, orphan(t, m)
			}
			_, err := connect(t, machines[0]).Exec(ctx, guest.Cmd{Args: []string{"/bin/sh", "-c", "kill -9 $PPID"}}, nil)
			if err == nil {
				t.Error("a command ended well with its agent killed")
			}
			if err := machines[0].Close(); err != nil {
				t.Fatal(err)
			}
			if left[0].Alive() {
				t.Error("what the job left is alive")
			}
			if !left[1].Alive() {
				t.Error("what the other machine's job left is dead")
			}
			if err := machines[1].Close(); err != nil {
				t.Fatal(err)
			}
			if left[1].Alive() {
				t.Error("what the other machine's job left outlived the machine")
			}
		})
	}
}

// orphan starts a process in a session and an environment of its own, whose parent has ended.
func orphan(t *testing.T, m vm.VM) vm.Process {
	t.Helper()
	return started(t, connect(t, m), "(setsid env -i /bin/sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' &)")
}

// start starts a machine and connects to it.
func start(t testing.TB) (*process.Provider, vm.VM, *guest.Client) {
	t.Helper()
	p := process.New(process.Config{Agent: []string{agentPath}, Dir: t.TempDir()})
	m, err := p.Start(context.Background(), vm.Spec{ID: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, m, connect(t, m)
}

func connect(t testing.TB, m vm.VM) *guest.Client {
	t.Helper()
	conn, err := m.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(context.Background(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func BenchmarkStart(b *testing.B) {
	p := process.New(process.Config{Agent: []string{agentPath}, Dir: b.TempDir()})
	for b.Loop() {
		m, err := p.Start(context.Background(), vm.Spec{ID: "bench"})
		if err != nil {
			b.Fatal(err)
		}
		c := connect(b, m)
		c.Close()
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	_, _, c := start(b)
	for b.Loop() {
		if exit, err := c.Exec(context.Background(), guest.Cmd{Args: []string{"/bin/true"}}, nil); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
}

func BenchmarkOutput(b *testing.B) {
	_, _, c := start(b)
	b.SetBytes(256 << 20)
	for b.Loop() {
		cmd := guest.Cmd{Args: []string{"/usr/bin/head", "-c", "256M", "/dev/zero"}}
		if exit, err := c.Exec(context.Background(), cmd, nil); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
}

// A machine's scratch folder goes with it, and with a server that dies.
func TestScratch(t *testing.T) {
	scratch := t.TempDir()
	p := process.New(process.Config{Agent: []string{agentPath}, Dir: t.TempDir(), Scratch: scratch})
	m, err := p.Start(context.Background(), vm.Spec{ID: "test"})
	if err != nil {
		t.Fatal(err)
	}
	dir := m.(*process.Machine).Scratch()
	if filepath.Dir(dir) != scratch {
		t.Errorf("scratch %s, want a folder in %s", dir, scratch)
	}
	if err := os.WriteFile(filepath.Join(dir, "left"), nil, 0o600); err != nil {
		t.Error(err)
	}
	entries, err := p.Journal().List()
	if err != nil || len(entries) != 1 || len(entries[0].Paths) != 1 || entries[0].Paths[0] != dir {
		t.Errorf("journal: %+v, %v", entries, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(scratch); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
