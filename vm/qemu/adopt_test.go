package qemu_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// TestAdoptNetwork: a machine that is adopted has its network and its limits, snapshots can be taken of it, and it is freed with all
// that it had. The rest is in the conformance suite.
func TestAdoptNetwork(t *testing.T) {
	cfg := limited(t)
	w := networktest.New(t, network.Config{Ready: 1})
	w.Name("example.com", networktest.Web)
	cfg.Slots = w.Pool
	first := warmed(t, cfg, vm.Spec{})
	m, err := first.Start(t.Context(), vm.Spec{ID: "left"})
	if err != nil {
		t.Fatal(withConsole(err))
	}
	if err := m.(vm.Networked).SetEgress("left", vm.Egress{Mode: vm.EgressOpen}); err != nil {
		t.Fatal(err)
	}
	if err := m.(vm.Survivor).Leave(); err != nil {
		t.Fatal(err)
	}

	reaped, err := cfg.Journal.Reap(t.Context(), func(id string) bool { return id == "left" })
	if err != nil || len(reaped) != 0 {
		t.Fatalf("reaped %+v, %v: want nothing", reaped, err)
	}
	m, err = vm.Adopt(t.Context(), provider(t, cfg), "left")
	if err != nil {
		t.Fatal(withConsole(err))
	}
	if err := m.(vm.Networked).SetEgress("left", vm.Egress{Mode: vm.EgressOpen}); err != nil {
		t.Fatal(err)
	}
	c := connect(t, m)
	run(t, c, "touch /root/go")
	if got := reach(t, c, "curl -sS -m 20 http://example.com/ 2>&1"); got != "web example.com" {
		t.Errorf("its network gives %q", got)
	}
	s, err := m.(vm.Snapshotter).Snapshot(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := m.(vm.Snapshotter).Rollback(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	run(t, connect(t, m), "test -e /root/go")
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
}

// TestAdoptAfterKill adopts the machine of a server that was killed with -9.
func TestAdoptAfterKill(t *testing.T) {
	cfg := config(t)
	killServer(t, cfg.Journal.Dir)
	p := provider(t, cfg)
	m, err := p.Adopt(t.Context(), "orphan")
	if err != nil {
		t.Fatal(withConsole(err))
	}
	run(t, connect(t, m), "for i in $(seq 100); do echo is anybody there > /dev/ttyS0; done; stty -F /dev/ttyS0 sane")
	if got := m.(vm.Infoer).Info(); got.PID == 0 || got.Isolation == "" || got.ID != "orphan" {
		t.Errorf("info: %+v", got)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
}

// TestAdoptNothing says of machines that are not there, or not any more, that they cannot be adopted, and leaves nothing.
func TestAdoptNothing(t *testing.T) {
	cfg := config(t)
	p := provider(t, cfg)
	if _, err := p.Adopt(t.Context(), "nobody"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a machine that never was: %v", err)
	}
	killServer(t, cfg.Journal.Dir)
	entries, err := cfg.Journal.List()
	if err != nil || len(entries) != 1 {
		t.Fatalf("journal: %+v, %v", entries, err)
	}
	entries[0].Processes[0].Kill()
	entries[0].Processes[0].Wait()
	if m, err := p.Adopt(t.Context(), "orphan"); err == nil {
		m.Close()
		t.Error("a machine whose emulator has ended was adopted")
	}
	nothingLeft(t, cfg.Journal)
}

// killServer has another process start the machine "orphan" below dir, and kills it with -9.
func killServer(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestServerThatDies$")
	cmd.Env = append(os.Environ(), "TGR_QEMU_JOURNAL="+dir)
	cmd.Stderr = os.Stderr
	out := &lockedBuffer{}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitText(t, out, "started")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(fmt.Errorf("kill the server: %w", err))
	}
	cmd.Wait()
}
