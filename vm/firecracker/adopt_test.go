package firecracker

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// TestAdoptAfterRollback: a machine that was rolled back is adopted in its network, can be rolled back again, and nothing of it
// is left in the end. The rest is in the conformance suite.
func TestAdoptAfterRollback(t *testing.T) {
	w := networktest.New(t, network.Config{Ready: 1})
	dir := t.TempDir()
	server := func() *Provider { return open(t, func(c *Config) { c.Slots, c.Journal.Dir = w.Pool, dir }) }
	rollBack := func(m vm.VM) {
		t.Helper()
		snap, err := m.(vm.Snapshotter).Snapshot(t.Context(), "")
		if err == nil {
			err = m.(vm.Snapshotter).Rollback(t.Context(), snap.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := server().Start(t.Context(), vm.Spec{ID: "left"})
	if err != nil {
		t.Fatal(err)
	}
	rollBack(m)
	if err := m.(vm.Survivor).Leave(); err != nil {
		t.Fatal(err)
	}
	next := server()
	reaped, err := next.cfg.Journal.Reap(t.Context(), func(id string) bool { return id == "left" })
	if err != nil || len(reaped) != 0 {
		t.Fatalf("reaped %+v, %v: want nothing", reaped, err)
	}
	m, err = vm.Adopt(t.Context(), next, "left")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.(vm.Networked).SetEgress("left", vm.Egress{Mode: vm.EgressOpen}); err != nil {
		t.Error(err)
	}
	rollBack(m)
	if got := execIn(t, m, "grep -c tap0: /proc/net/dev"); got != "1" {
		t.Errorf("the machine is not in its slot's namespace: %q", got)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the journal: %v, %v", left, err)
	}
}

// TestAdoptAfterKill adopts the machine of a server that was killed with -9. What is not there, or has ended, is not adopted,
// and nothing of it is left.
func TestAdoptAfterKill(t *testing.T) {
	p := open(t, func(c *Config) { c.UIDs = [2]int{210000, 1} })
	orphan := ownerKilled(t, p, "orphan")
	m, err := p.Adopt(t.Context(), "orphan")
	if err != nil {
		t.Fatal(err)
	}
	if got := execIn(t, m, "echo works"); got != "works" {
		t.Errorf("it says %q", got)
	}
	if i := m.(vm.Infoer).Info(); i.PID != orphan.PID || i.ID != "orphan" {
		t.Errorf("info: %+v, want process %d", i, orphan.PID)
	}
	orphan.Kill()
	var infra *vm.InfraError
	if err := m.Wait(t.Context()); !errors.As(err, &infra) || !strings.Contains(err.Error(), "it ended") {
		t.Errorf("after its process was killed: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Adopt(t.Context(), "nobody"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a machine that never was: %v", err)
	}
	dead := ownerKilled(t, p, "dead")
	dead.Kill()
	dead.Wait()
	if _, err := p.Adopt(t.Context(), "dead"); err == nil || !strings.Contains(err.Error(), "its process has ended") {
		t.Errorf("a machine that has ended: %v", err)
	}
	if left, err := os.ReadDir(p.cfg.Journal.Dir); err != nil || len(left) > 0 {
		t.Errorf("left in the journal: %v, %v", left, err)
	}
}
