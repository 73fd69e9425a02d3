package firecracker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr/vm"
)

// keepSnapshots is how many snapshots of a running machine there may be at once.
const keepSnapshots = 3

// files are a snapshot's: what Firecracker wrote, and the disk of that moment.
type files struct{ dir string }

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

// taken is a snapshot of a running machine.
type taken struct {
	vm.Snapshot
	files
}

// save writes what a machine is into the folder dir, which does not exist. The machine stands still meanwhile, and goes
// on if it is to.
func (m *machine) save(ctx context.Context, dir string, goOn bool) (paused time.Duration, err error) {
	m.mu.Lock()
	proc := m.proc
	m.mu.Unlock()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := proc.api.Pause(ctx); err != nil {
		return 0, err
	}
	err = proc.api.CreateSnapshot(ctx, SnapshotFiles{State: stateFile, Memory: memoryFile, Type: "Full"})
	if err == nil {
		err = vm.CopySparse(ctx, filepath.Join(dir, overlayFile), proc.jail.path(overlayFile))
	}
	if goOn {
		// Also when ctx has ended: a machine that stands still is of no use to anybody.
		resume, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		err = errors.Join(err, proc.api.Resume(resume))
	}
	paused = time.Since(begin)
	for _, name := range []string{stateFile, memoryFile} {
		if err == nil {
			err = os.Rename(proc.jail.path(name), filepath.Join(dir, name))
		}
		if err == nil {
			err = os.Chmod(filepath.Join(dir, name), 0o444) // clones map it: it must not change while one of them lives
		}
		if err == nil && os.Geteuid() == 0 {
			err = os.Chown(filepath.Join(dir, name), 0, 0)
		}
	}
	return paused, err
}

// loadPlan makes a machine from a snapshot.
func (p *Provider) loadPlan(f files) plan {
	return plan{
		files: func(ctx context.Context, j *jail) error {
			for name, path := range map[string]string{
				rootFile: p.cfg.Image.Root, stateFile: f.path(stateFile), memoryFile: f.path(memoryFile),
			} {
				if err := j.link(ctx, path, name); err != nil {
					return err
				}
			}
			if err := vm.CopySparse(ctx, j.path(overlayFile), f.path(overlayFile)); err != nil {
				return err
			}
			return errors.Join(j.own(overlayFile), j.empty(metricsFile), j.empty(logFile))
		},
		run: func(ctx context.Context, c *Client) error { return p.load(ctx, c) },
	}
}

// load restores a machine and lets it go on. Log and metrics are not in a snapshot; limits are, as they were then.
func (p *Provider) load(ctx context.Context, c *Client) error {
	for _, call := range []func() error{
		func() error { return c.PutLogger(ctx, Logger{Path: logFile, Level: "Warning", ShowLevel: true}) },
		func() error { return c.PutMetrics(ctx, metricsFile) },
		func() error {
			return c.LoadSnapshot(ctx, SnapshotLoad{
				State: stateFile, Memory: MemoryBackend{Type: "File", Path: memoryFile}, Vsock: &VsockOverride{Path: agentSocket},
			})
		},
		func() error {
			if p.cfg.DiskLimit == nil {
				return nil
			}
			return c.PatchDrive(ctx, DriveUpdate{ID: "overlay", Limiter: p.cfg.DiskLimit})
		},
		func() error { return c.Resume(ctx) },
	} {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot obeys vm.Snapshotter.
func (m *machine) Snapshot(ctx context.Context, name string) (vm.Snapshot, error) {
	m.rolling.Lock()
	defer m.rolling.Unlock()
	if err := m.alive(); err != nil {
		return vm.Snapshot{}, err
	}
	s := taken{Snapshot: vm.Snapshot{ID: strings.ToLower(rand.Text()[:12]), Name: name, Taken: time.Now()}}
	s.dir = filepath.Join(m.rec.Dir(), "snapshot-"+s.ID)
	var err error
	if s.Paused, err = m.save(ctx, s.dir, true); err != nil {
		return vm.Snapshot{}, &vm.InfraError{Op: "firecracker: snapshot of machine " + m.id, Err: errors.Join(err, os.RemoveAll(s.dir))}
	}
	if s.Bytes, err = vm.Allocated(s.dir); err != nil {
		return vm.Snapshot{}, &vm.InfraError{Op: "firecracker: snapshot of machine " + m.id, Err: errors.Join(err, os.RemoveAll(s.dir))}
	}
	m.snapshots = append(m.snapshots, s)
	for len(m.snapshots) > keepSnapshots {
		if err := os.RemoveAll(m.snapshots[0].dir); err != nil {
			return s.Snapshot, &vm.InfraError{Op: "firecracker: remove an old snapshot", Err: err}
		}
		m.snapshots = m.snapshots[1:]
	}
	return s.Snapshot, nil
}

// Rollback obeys vm.Snapshotter. A process can load a snapshot only before anything else, so that another one takes over.
func (m *machine) Rollback(ctx context.Context, id string) error {
	m.rolling.Lock()
	defer m.rolling.Unlock()
	i := slices.IndexFunc(m.snapshots, func(s taken) bool { return s.ID == id })
	if i < 0 {
		return fmt.Errorf("machine %s: %q: %w", m.id, id, vm.ErrNoSnapshot)
	}
	if err := m.alive(); err != nil {
		return err
	}
	old := m.retire()
	old.os.Kill()
	<-old.exited
	err := m.launch(ctx, m.p.loadPlan(m.snapshots[i].files))
	old.jail.close()
	if err == nil {
		err = os.RemoveAll(old.jail.root)
	}
	if err != nil {
		err = m.startError(ctx, err)
		m.fail(err)
	}
	return err
}

// Snapshots obeys vm.Snapshotter.
func (m *machine) Snapshots() []vm.Snapshot {
	m.rolling.Lock()
	defer m.rolling.Unlock()
	list := make([]vm.Snapshot, 0, len(m.snapshots))
	for _, s := range m.snapshots {
		list = append(list, s.Snapshot)
	}
	return list
}

// alive is an error for a machine that has ended.
func (m *machine) alive() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("machine %s: %w", m.id, errClosed)
	}
	if m.HasEnded() {
		return fmt.Errorf("machine %s: it has ended", m.id)
	}
	return nil
}

// retire says that the end of the current process will not be the machine's.
func (m *machine) retire() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proc.spare = true
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
	return m.proc
}

// fail ends the machine after a rollback that did not succeed.
func (m *machine) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proc.os.Kill()
	if m.closed {
		err = nil
	}
	m.Settle(err)
}
