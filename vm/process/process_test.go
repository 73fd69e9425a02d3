package process_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
	dir := t.TempDir()
	vmtest.Run(t, vmtest.Factory{
		Provider: process.New(process.Config{Agent: []string{agentPath}, Dir: dir}),
		Dir:      dir,
		Temp:     filepath.Join(t.TempDir(), "vmtest"),
		Crash:    "kill -9 $PPID",
		Cycles:   100,
	})
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
