package qemu_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr/vm"
)

// TestSpare: an emulator that was started ahead becomes the machine that is asked for, under its name; one that has died or is
// another size's is not in the way; and none is left.
func TestSpare(t *testing.T) {
	cfg, log := warmConfig(t)
	cfg.Spare = true
	p := warmed(t, cfg, vm.Spec{})
	defer p.Close()
	if err := p.Prestart(t.Context(), vm.Spec{Memory: 300 << 20}); err == nil || !strings.Contains(err.Error(), "no snapshot") {
		t.Errorf("an emulator of a size without a snapshot: %v", err)
	}
	if err := p.Prestart(t.Context(), vm.Spec{}); err != nil {
		t.Fatal(err)
	}
	spare := awaitSpare(t, cfg.Journal)
	if err := p.Prestart(t.Context(), vm.Spec{}); err != nil || awaitSpare(t, cfg.Journal).ID != spare.ID {
		t.Errorf("one waited already, and there is another: %v", err)
	}

	m, c := start(t, p, "first")
	if got := m.(vm.Infoer).Info(); !tookSpare(m) || got.ID != "first" || got.PID != spare.Processes[0].PID {
		t.Errorf("the machine is not what waited, process %d: %+v", spare.Processes[0].PID, got)
	}
	run(t, c, "echo it works > /root/file")
	c.Close()
	id, err := m.(vm.Snapshotter).Snapshot(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.(vm.Snapshotter).Rollback(t.Context(), id.ID); err != nil {
		t.Fatal(err)
	}
	if got := run(t, connect(t, m), "cat /root/file"); got != "it works" {
		t.Errorf("after a rollback the file holds %q", got)
	}
	if e, err := cfg.Journal.Entry("first"); err != nil || e.ID != "first" {
		t.Errorf("the journal has %+v, %v, not the machine", e, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}

	dead := awaitSpare(t, cfg.Journal) // the next one, which nobody asked for
	dead.Processes[0].Kill()
	dead.Processes[0].Wait()
	m, c = start(t, p, "second")
	if tookSpare(m) {
		t.Error("the machine is an emulator that was killed")
	}
	run(t, c, "true")
	if err := m.Close(); err != nil {
		t.Error(err)
	}

	waits := awaitSpare(t, cfg.Journal)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if waits.Processes[0].Alive() {
		t.Error("an emulator waits for a provider that was closed")
	}
	nothingLeft(t, cfg.Journal)
	if log.count("machine booted") != 0 {
		t.Errorf("machines were booted:\n%s", log)
	}
}

// TestSpareAdopted: a machine that was a spare is adopted as any other.
func TestSpareAdopted(t *testing.T) {
	cfg, _ := warmConfig(t)
	p := warmed(t, cfg, vm.Spec{})
	if err := p.Prestart(t.Context(), vm.Spec{}); err != nil {
		t.Fatal(err)
	}
	m, c := start(t, p, "left")
	run(t, c, "echo kept > /dev/shm/file")
	c.Close()
	if err := m.(vm.Survivor).Leave(); err != nil {
		t.Fatal(err)
	}
	m, err := vm.Adopt(t.Context(), provider(t, cfg), "left")
	if err != nil {
		t.Fatal(withConsole(err))
	}
	if got := run(t, connect(t, m), "cat /dev/shm/file"); got != "kept" {
		t.Errorf("the machine that was adopted has %q", got)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, cfg.Journal)
}

// tookSpare reports whether an emulator was there when the machine was asked for.
func tookSpare(m vm.VM) bool {
	phases := m.(vm.Infoer).Info().Phases
	return len(phases) > 0 && strings.HasPrefix(phases[0].Name, "take an emulator")
}

// awaitSpare waits until the journal has a spare with its process.
func awaitSpare(t *testing.T, j vm.Journal) vm.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		list, err := j.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if strings.HasPrefix(e.ID, "spare-") && len(e.Processes) > 0 {
				return e
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no emulator waits: %+v", list)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
