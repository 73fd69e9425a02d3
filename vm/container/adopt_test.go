package container

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
	"github.com/terraphim/tgr/vm/vmtest"
)

// TestAdoptNetwork: a machine that is adopted has its network, and nothing of it is left when it is closed. The rest is in the
// conformance suite.
func TestAdoptNetwork(t *testing.T) {
	cfg := config(t)
	w := networktest.New(t, network.Config{Ready: 1, Inner: true})
	w.Name("example.com", networktest.Web)
	cfg.Slots = w.Pool
	before := hostState(t)
	m, err := open(t, cfg).Start(t.Context(), vm.Spec{ID: "reaped-left"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.(vm.Survivor).Leave(); err != nil {
		t.Fatal(err)
	}
	reaped, err := cfg.Journal.Reap(t.Context(), func(id string) bool { return id == "reaped-left" })
	if err != nil || len(reaped) != 0 {
		t.Fatalf("reaped %+v, %v: want nothing", reaped, err)
	}
	m, err = vm.Adopt(t.Context(), open(t, cfg), "reaped-left")
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, m)
	if err := m.(vm.Networked).SetEgress("left", vm.Egress{Mode: vm.EgressOpen}); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, c, "curl -sS -m 20 http://example.com/ 2>&1"); got != "web example.com" {
		t.Errorf("its network gives %q", got)
	}
	c.Close()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if left, err := cfg.Journal.List(); err != nil || len(left) > 0 {
		t.Errorf("left in the journal: %+v, %v", left, err)
	}
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("the host (-before +after):\n%s", diff)
	}
}

// TestAdoptAfterKill adopts the machine of a server that was killed with -9, and says that its agent has ended when it has. A
// machine that is not there, not a container or not alive is not adopted, and nothing of it is left.
func TestAdoptAfterKill(t *testing.T) {
	cfg := config(t)
	orphan := killOwner(t, cfg)
	p := open(t, cfg)
	m, err := p.Adopt(t.Context(), "reaped")
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, m)
	if got := sh(t, c, "echo works"); got != "works" {
		t.Errorf("it says %q", got)
	}
	c.Exec(t.Context(), guest.Cmd{Args: []string{"/bin/bash", "-c", "kill -QUIT 1"}}, nil)
	var boot *vm.BootError
	if err := m.Wait(t.Context()); !errors.As(err, &boot) || !strings.Contains(err.Error(), "agent ended") {
		t.Errorf("after its agent has ended: %v", err)
	}
	if err := m.Close(); err != nil || orphan.Alive() {
		t.Errorf("closed: %v, alive: %v", err, orphan.Alive())
	}

	if _, err := p.Adopt(t.Context(), "nobody"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a machine that never was: %v", err)
	}
	dead := killOwner(t, cfg)
	dead.Kill()
	dead.Wait()
	if _, err := p.Adopt(t.Context(), "reaped"); err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("a machine that has ended: %v", err)
	}
	if _, err := cfg.Journal.Open("other", "qemu"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Adopt(t.Context(), "other"); err == nil || !strings.Contains(err.Error(), "a machine of qemu") {
		t.Errorf("a machine of another kind: %v", err)
	}
	if left, err := cfg.Journal.List(); err != nil || len(left) > 0 {
		t.Errorf("left in the journal: %+v, %v", left, err)
	}
}

func connect(t testing.TB, m vm.VM) *guest.Client {
	t.Helper()
	c, err := guest.Dial(t.Context(), m.Dial)
	if err != nil {
		t.Fatalf("%v: %s", err, m.(vm.Infoer).Info().Console)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// killOwner has another process start the machine "reaped", kills it with -9, and returns the machine's agent, which lives.
func killOwner(t *testing.T, cfg Config) vm.Process {
	t.Helper()
	cmd := exec.Command(os.Args[0], "owner", cfg.Journal.Dir, cfg.Root)
	cmd.Stderr = os.Stderr
	return vmtest.Orphan(t, cmd)
}
