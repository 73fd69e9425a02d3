package qemu

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr/vm"
)

const (
	// keepGoldens is how many snapshots are kept in the cache folder: sizes in use, and the ones before a change.
	keepGoldens  = 4
	goldenTmp    = ".new-"
	goldenLock   = "lock"
	saveWithin   = time.Minute
	warmupWithin = 5 * time.Minute
)

// Warm makes the snapshot that machines of s's size are restored from, unless there is one that is good: it boots
// a machine, has it run the Warmup, and saves its memory, devices and disk. Several processes may call it; one of
// them does the work. It obeys vm.Warmer.
//
// Snapshots of machines that run under KVM follow the same recipe, but have NOT been tested: there was no host
// with KVM to test on. Warm restores a machine before it calls a snapshot good, so that one that does not work
// there costs time and not jobs.
func (p *Provider) Warm(ctx context.Context, s vm.Spec) error {
	if p.cfg.Image.Hash == "" || p.cfg.CacheDir == "" {
		return &vm.InfraError{Op: "qemu: snapshot", Err: errors.New("the image has no hash, or there is no cache folder")}
	}
	s.ID = "golden-" + strings.ToLower(rand.Text()[:12])
	a, err := p.argsFor(ctx, s)
	if err != nil {
		return err
	}
	key, err := p.goldenKeyOf(ctx, a, s)
	if err != nil {
		return err
	}
	name := key.hash()
	if g, err := p.find(ctx, name); g != nil && err == nil {
		return nil
	}
	root := filepath.Join(p.cfg.CacheDir, goldenDir)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return &vm.InfraError{Op: "qemu: snapshot", Err: err}
	}
	unlock, err := vm.LockFile(ctx, filepath.Join(root, goldenLock))
	if err != nil {
		return &vm.InfraError{Op: "qemu: snapshot", Err: err}
	}
	defer unlock()
	return p.warmLocked(ctx, root, key, a, s)
}

// warmLocked is Warm while no other process makes or prunes snapshots.
func (p *Provider) warmLocked(ctx context.Context, root string, key goldenKey, a args, s vm.Spec) error {
	name := key.hash()
	p.goldens.mu.Lock()
	again := p.goldens.refused[name]
	delete(p.goldens.refused, name)
	p.goldens.mu.Unlock()
	if !again { // another process may have made it
		g, err := p.find(ctx, name)
		if g != nil {
			return nil
		}
		if err != nil {
			p.cfg.Log.Warn("a snapshot cannot be used, and is made again", "snapshot", name, "error", err)
		}
	}
	p.goldens.mu.Lock()
	delete(p.goldens.refused, name)
	p.goldens.mu.Unlock()
	began := time.Now()
	if err := prune(root, name); err != nil {
		return &vm.InfraError{Op: "qemu: snapshot", Err: err}
	}
	if err := p.makeGolden(ctx, root, key, a, s); err != nil {
		return err
	}
	g, err := p.find(ctx, name)
	if err != nil || g == nil {
		return &vm.InfraError{Op: "qemu: snapshot", Err: errors.Join(errors.New("it cannot be loaded"), err)}
	}
	s.ID += "-try"
	m, err := p.restore(ctx, g, a, s)
	if err != nil {
		return err
	}
	p.cfg.Log.Info("snapshot made", "snapshot", name, "isolation", m.isolation, "took", time.Since(began).Round(time.Millisecond))
	return m.Close()
}

// makeGolden makes the folder of a snapshot; it appears with all that is in it, or not at all.
func (p *Provider) makeGolden(ctx context.Context, root string, key goldenKey, a args, s vm.Spec) error {
	if err := checkMemory(a.Memory); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(root, goldenTmp)
	if err != nil {
		return &vm.InfraError{Op: "qemu: snapshot", Err: err}
	}
	defer os.RemoveAll(tmp)
	man := manifest{Key: key, Made: time.Now().UTC(), Files: map[string]goldenFile{}}
	if err := p.bootGolden(ctx, tmp, &man, a, s); err != nil {
		return err
	}
	if err = man.save(tmp); err == nil {
		err = os.Rename(tmp, filepath.Join(root, key.hash()))
	}
	if err != nil {
		return &vm.InfraError{Op: "qemu: snapshot", Err: err}
	}
	return nil
}

// bootGolden boots a machine whose memory is in a file, warms it up, stops it, and writes what it was to dir.
func (p *Provider) bootGolden(ctx context.Context, dir string, man *manifest, a args, s vm.Spec) error {
	state, err := memoryFile()
	if err != nil {
		return err
	}
	defer state.Close()
	a.ID = s.ID
	m, err := p.boot(ctx, a, s)
	if err != nil {
		return err
	}
	memory, err := reopen(m.memory) // which does not outlive the machine
	if err != nil {
		return errors.Join(err, m.Close())
	}
	defer memory.Close()
	err = p.warmup(ctx, m)
	if err == nil {
		err = m.save(ctx, state)
	}
	if err == nil {
		err = m.packDisk(ctx, dir, man)
	}
	if err = errors.Join(err, m.Close()); err != nil { // from here on nobody writes to its memory
		return fmt.Errorf("snapshot: %w", err)
	}
	return errors.Join(
		man.write(dir, goldenMemory, func(w io.Writer) error { return pack(ctx, w, memory) }),
		man.write(dir, goldenState, func(w io.Writer) error {
			return copyAll(w, io.NewSectionReader(state, 0, maxState))
		}),
	)
}

func (p *Provider) warmup(ctx context.Context, m *machine) error {
	if p.cfg.Warmup.Run == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, warmupWithin, fmt.Errorf("the warm-up did not end within %v", warmupWithin))
	defer cancel()
	if err := p.cfg.Warmup.Run(ctx, m); err != nil {
		return &vm.BootError{ID: m.rec.ID(), Console: m.console.String(), Err: fmt.Errorf("warm-up: %w", err)}
	}
	return nil
}

// save writes the state of the machine's devices to f, and with that stops it for good. Because it ran until then, what is
// restored from this runs at once.
func (m *machine) save(ctx context.Context, f *os.File) error {
	e := m.emulator()
	err := e.awaitRest(ctx)
	if err == nil {
		err = e.migration(ctx)
	}
	if err == nil {
		err = e.qmp.passFile(ctx, "state", f)
	}
	if err == nil {
		err = e.qmp.execute(ctx, "migrate", map[string]string{"uri": "fd:state"}, nil)
	}
	if err != nil {
		return err
	}
	return e.awaitMigration(ctx, saveWithin)
}

const (
	restWindow = 200 * time.Millisecond
	restWithin = 10 * time.Second
)

// awaitRest waits until the guest has nothing left to do, or has been busy for so long that it never will: what it has
// to do when it is stopped, each clone would do again.
func (e *emulator) awaitRest(ctx context.Context) error {
	tick := time.NewTicker(restWindow)
	defer tick.Stop()
	last := time.Duration(-1)
	for begin := time.Now(); time.Since(begin) < restWithin; {
		used, err := vm.CPUTime(e.process.Pid)
		if err != nil {
			return &vm.InfraError{Op: "qemu: snapshot", Err: err}
		}
		if last >= 0 && used-last < restWindow/20 {
			return nil
		}
		last = used
		select {
		case <-tick.C:
		case <-e.done:
			return errors.Join(errors.New("it ended before its snapshot"), e.err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// packDisk keeps the disk of a machine that has stopped.
func (m *machine) packDisk(ctx context.Context, dir string, man *manifest) error {
	f, err := os.Open(m.diskPath())
	if err != nil {
		return err
	}
	defer f.Close()
	return man.write(dir, goldenDisk, func(w io.Writer) error { return pack(ctx, w, f) })
}

// write makes a file of the snapshot, only to be read, and notes what it is.
func (m *manifest) write(dir, name string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return &vm.InfraError{Op: "qemu: snapshot", Err: err}
	}
	h := sha256.New()
	err = fill(io.MultiWriter(f, h))
	fi, serr := f.Stat()
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return &vm.InfraError{Op: "qemu: snapshot: write " + name, Err: err}
	}
	m.Files[name] = goldenFile{Size: fi.Size(), SHA256: hex.EncodeToString(h.Sum(nil))}
	return nil
}

// save writes the manifest to the snapshot's folder.
func (m *manifest) save(dir string) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, goldenManifest), b, 0o400)
}

// prune removes the snapshot of that name, what a crash left, and all but the snapshots that were used last.
func prune(root, name string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	type used struct {
		dir string
		at  time.Time
	}
	var keep []used
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if !e.IsDir() {
			continue
		}
		if fi, serr := os.Stat(filepath.Join(dir, goldenManifest)); serr == nil && e.Name() != name {
			keep = append(keep, used{dir, fi.ModTime()})
			continue
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}
	slices.SortFunc(keep, func(a, b used) int { return b.at.Compare(a.at) })
	for i, u := range keep {
		if i >= keepGoldens-1 { // one is about to be made
			err = errors.Join(err, os.RemoveAll(u.dir))
		}
	}
	return err
}
