package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/terraphim/tgr/vm"
)

// keepSnapshots is how many snapshots a machine has room for; each holds a copy of what the machine has written.
const keepSnapshots = 3

// Files of a machine's snapshot, in a folder below the machine's.
const (
	snapshotsDir   = "snapshots"
	snapshotMemory = "memory" // sparse: pages that are as in what the memory is mapped from are holes
	snapshotDisk   = "disk"   // sparse
	snapshotState  = "state"  // of the devices
)

// stillWithin bounds how long a machine stands still for a snapshot or a rollback, on a busy host with a slow disk.
const stillWithin = 2 * time.Minute

// snapshots are what a machine can be rolled back to.
type snapshots struct {
	busy sync.Mutex // one at a time is taken or gone back to

	mu   sync.Mutex
	made int
	kept []vm.Snapshot
}

// Snapshots obeys vm.Snapshotter.
func (m *machine) Snapshots() []vm.Snapshot {
	m.snapshots.mu.Lock()
	defer m.snapshots.mu.Unlock()
	return slices.Clone(m.snapshots.kept)
}

func (m *machine) snapshotDir(id string) string { return filepath.Join(m.rec.Dir(), snapshotsDir, id) }

// Snapshot obeys vm.Snapshotter. It copies what differs from the golden snapshot that the machine was restored from.
func (m *machine) Snapshot(ctx context.Context, name string) (vm.Snapshot, error) {
	m.snapshots.busy.Lock()
	defer m.snapshots.busy.Unlock()
	if err := m.alive(ctx); err != nil {
		return vm.Snapshot{}, fmt.Errorf("snapshot of machine %s: %w", m.rec.ID(), err)
	}
	m.snapshots.mu.Lock()
	m.snapshots.made++
	s := vm.Snapshot{ID: "s" + strconv.Itoa(m.snapshots.made), Name: name, Taken: time.Now().UTC()}
	m.snapshots.mu.Unlock()
	dir := m.snapshotDir(s.ID)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		s.Paused, err = m.keep(ctx, dir)
	}
	if err == nil {
		s.Bytes, err = vm.Allocated(dir)
	}
	if err != nil {
		return vm.Snapshot{}, &vm.InfraError{Op: "qemu: snapshot of machine " + m.rec.ID(), Err: errors.Join(err, os.RemoveAll(dir))}
	}
	m.snapshots.mu.Lock()
	m.snapshots.kept = append(m.snapshots.kept, s)
	var old []vm.Snapshot
	if over := len(m.snapshots.kept) - keepSnapshots; over > 0 {
		old, m.snapshots.kept = m.snapshots.kept[:over:over], slices.Clone(m.snapshots.kept[over:])
	}
	m.snapshots.mu.Unlock()
	for _, o := range old {
		os.RemoveAll(m.snapshotDir(o.ID)) // what is left goes with the machine
	}
	return s, nil
}

// alive says why nothing can be done with the machine, if so.
func (m *machine) alive(ctx context.Context) error {
	if m.HasEnded() {
		return errors.Join(errors.New("it has ended"), m.Wait(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	if m.emu == nil {
		return errors.New("it was not started")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// keep copies what the machine is to dir while it stands still, and has it go on whatever happens.
func (m *machine) keep(ctx context.Context, dir string) (still time.Duration, err error) {
	e, began := m.emulator(), time.Now()
	var status struct{ Running bool } // it may have been paused
	err = e.qmp.execute(ctx, "query-status", nil, &status)
	if err == nil && status.Running {
		err = e.qmp.execute(ctx, "stop", nil, nil)
	}
	if err != nil {
		return 0, err
	}
	defer func() {
		if !status.Running {
			return
		}
		// Not even the end of ctx leaves a machine that stands still.
		on, cancel := context.WithTimeout(context.WithoutCancel(ctx), stillWithin)
		defer cancel()
		err = errors.Join(err, e.qmp.execute(on, "cont", nil, nil))
		still = time.Since(began)
	}()
	if err := e.saveDevices(ctx, filepath.Join(dir, snapshotState)); err != nil {
		return 0, fmt.Errorf("state of the devices: %w", err)
	}
	if err := m.saveMemory(ctx, filepath.Join(dir, snapshotMemory)); err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	if err := vm.CopySparse(ctx, filepath.Join(dir, snapshotDisk), m.diskPath()); err != nil {
		return 0, fmt.Errorf("disk: %w", err)
	}
	return 0, nil
}

// saveDevices has QEMU write the state of its devices, without the memory, to a new file. The command is named after
// its first user, and works without Xen.
func (e *emulator) saveDevices(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const set = 1
	if err := e.qmp.send(ctx, "add-fd", map[string]int{"fdset-id": set}, nil, f); err != nil {
		return err
	}
	return errors.Join(
		e.qmp.execute(ctx, "xen-save-devices-state", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", set), "live": false}, nil),
		e.qmp.execute(ctx, "remove-fd", map[string]int{"fdset-id": set}, nil),
		f.Close(),
	)
}

// Rollback obeys vm.Snapshotter. The emulator is replaced by one that goes on from the snapshot.
func (m *machine) Rollback(ctx context.Context, id string) error {
	m.snapshots.busy.Lock()
	defer m.snapshots.busy.Unlock()
	if !slices.ContainsFunc(m.Snapshots(), func(s vm.Snapshot) bool { return s.ID == id }) {
		return fmt.Errorf("roll back machine %s to %q: %w", m.rec.ID(), id, vm.ErrNoSnapshot)
	}
	if err := m.alive(ctx); err != nil {
		return fmt.Errorf("roll back machine %s: %w", m.rec.ID(), err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stillWithin) // what was begun is not left half done
	defer cancel()
	m.mu.Lock()
	m.paused = true
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
	old := m.emu
	m.mu.Unlock()
	old.end()
	if err := m.replace(ctx, m.snapshotDir(id)); err != nil {
		err = &vm.InfraError{Op: "qemu: roll back machine " + m.rec.ID(), Err: err}
		m.Settle(err)
		return err
	}
	return nil
}

// replace starts an emulator that goes on from the snapshot in dir; the one before has ended.
func (m *machine) replace(ctx context.Context, dir string) error {
	if err := os.Remove(m.diskPath()); err != nil {
		return err
	}
	if err := vm.CopySparse(ctx, m.diskPath(), filepath.Join(dir, snapshotDisk)); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if m.args.Backing == shared {
		if err := m.renewMemory(ctx, filepath.Join(dir, snapshotMemory)); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	state, err := os.Open(filepath.Join(dir, snapshotState))
	if err != nil {
		return err
	}
	defer state.Close()
	a := m.args
	a.Incoming = true
	e, err := m.launch(ctx, a, []*os.File{m.memory, state})
	if e == nil {
		return err
	}
	if err == nil && a.Backing == private {
		err = e.loadMemory(ctx, filepath.Join(dir, snapshotMemory))
	}
	if err == nil { // behind the memory: devices look at their queues when they are loaded
		err = e.incoming(ctx)
	}
	if err == nil {
		err = m.takeOver(e)
	}
	if err != nil {
		e.end()
	}
	return err
}

// takeOver installs the emulator of a rollback, unless the machine was closed meanwhile.
func (m *machine) takeOver(e *emulator) error {
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return errClosed
	}
	m.install(e)
	return nil
}

// renewMemory gives the machine new memory of its own with what a snapshot kept.
func (m *machine) renewMemory(ctx context.Context, path string) error {
	kept, err := os.Open(path)
	if err != nil {
		return err
	}
	defer kept.Close()
	f, err := m.args.memoryFile()
	if err != nil {
		return err
	}
	if err := vm.CopyData(ctx, f, kept); err != nil {
		f.Close()
		return err
	}
	m.memory.Close()
	m.memory = f
	return nil
}
