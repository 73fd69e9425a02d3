package firecracker

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
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

const (
	goldenDir      = "firecracker-snapshots" // in the cache folder
	goldenManifest = "manifest.json"
	goldenFormat   = 1 // counts changes of what a snapshot is
	keepGoldens    = 4
	warmupWithin   = 5 * time.Minute
)

// goldenKey is everything that a golden snapshot depends on: a machine is restored only from one with the same key.
//
// https://github.com/firecracker-microvm/firecracker/blob/v1.16.1/docs/snapshotting/versioning.md
type goldenKey struct {
	Format  int    `json:"format"`
	Image   string `json:"image"`
	Version string `json:"version"` // of Firecracker
	Host    string `json:"host"`    // kernel
	CPU     string `json:"cpu"`     // model, features and microcode
	VCPUs   int    `json:"vcpus"`
	Memory  int64  `json:"memory"`
	Disk    int64  `json:"disk"`
	Warmup  string `json:"warmup"`
	Cmdline string `json:"cmdline"`
}

func (k goldenKey) hash() string {
	b, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// goldenKeyOf settles the key of machines of a size.
func (p *Provider) goldenKeyOf(ctx context.Context, s vm.Spec) (goldenKey, error) {
	out, err := exec.CommandContext(ctx, p.binary, "--version").Output()
	if err != nil {
		return goldenKey{}, fmt.Errorf("%s --version: %w", p.binary, err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return goldenKey{}, err
	}
	cpu, err := vm.HostCPU()
	if err != nil {
		return goldenKey{}, err
	}
	return goldenKey{
		Format: goldenFormat, Image: p.cfg.Image.Hash, Version: version, Host: unix.ByteSliceToString(host.Release[:]),
		CPU: cpu, VCPUs: s.VCPUs, Memory: s.Memory, Disk: s.Disk, Warmup: p.cfg.Warmup.ID, Cmdline: p.cmdline(),
	}, nil
}

// manifest vouches for the files of a golden snapshot.
type manifest struct {
	Key   goldenKey         `json:"key"`
	Made  time.Time         `json:"made"`
	Files map[string]string `json:"files"` // SHA-256 by name
}

// goldens are the snapshots that were verified in this process's life, and those that did not restore.
type goldens struct {
	mu      sync.Mutex
	good    map[string]files
	refused map[string]bool
}

func (g *goldens) get(key string) (f files, known, refused bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, known = g.good[key]
	return f, known, g.refused[key]
}

func (g *goldens) set(key string, f files, good bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.good == nil {
		g.good, g.refused = map[string]files{}, map[string]bool{}
	}
	if good {
		g.good[key] = f
		delete(g.refused, key)
	} else {
		delete(g.good, key)
		g.refused[key] = true
	}
}

// find returns the snapshot with that key, verified; ok is false where there is none that is good.
func (p *Provider) find(key goldenKey) (f files, ok bool, err error) {
	name := key.hash()
	f, known, refused := p.goldens.get(name)
	if known || refused {
		return f, known, nil
	}
	f = files{filepath.Join(p.cfg.CacheDir, goldenDir, name)}
	b, err := os.ReadFile(f.path(goldenManifest))
	if errors.Is(err, os.ErrNotExist) {
		return f, false, nil
	}
	var man manifest
	if err == nil {
		err = json.Unmarshal(b, &man)
	}
	if err == nil && man.Key != key {
		err = errors.New("its manifest is of another snapshot")
	}
	for _, name := range []string{stateFile, memoryFile, overlayFile} {
		if err != nil {
			break
		}
		var sum string
		if sum, err = hashFile(f.path(name)); err == nil && sum != man.Files[name] {
			err = fmt.Errorf("%s has changed since it was made", name)
		}
	}
	p.goldens.set(name, f, err == nil)
	if err != nil {
		return f, false, fmt.Errorf("golden snapshot %s: %w", f.dir, err)
	}
	return f, true, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// restoreOrNil restores a machine, or returns nil where that is not possible: a machine that is booted is as good, so
// the reason is for the log. An error is the end of ctx.
func (p *Provider) restoreOrNil(ctx context.Context, s vm.Spec) (*machine, error) {
	if p.cfg.Image.Hash == "" || p.cfg.CacheDir == "" {
		return nil, nil
	}
	key, err := p.goldenKeyOf(ctx, s)
	var f files
	ok := false
	if err == nil {
		f, ok, err = p.find(key)
	}
	if err == nil && !ok {
		return nil, nil
	}
	var m *machine
	if err == nil {
		if m, err = p.start(ctx, s, p.loadPlan(f)); err == nil {
			m.restored = true
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		p.goldens.set(key.hash(), f, false) // not tried again before the next Warm
	}
	p.cfg.Log.Warn("machine could not be restored from a snapshot, and is booted", "vm", s.ID, "error", err)
	return nil, nil
}

// Warm makes the golden snapshot that machines of s's size are restored from, unless there is one that is good. Several
// processes may call it; one of them does the work. It obeys vm.Warmer.
func (p *Provider) Warm(ctx context.Context, s vm.Spec) error {
	s.ID = "golden-" + strings.ToLower(rand.Text()[:12])
	s, err := p.size(s)
	if err != nil {
		return err
	}
	if err := p.warm(ctx, s); err != nil {
		return &vm.InfraError{Op: "firecracker: golden snapshot", Err: err}
	}
	return nil
}

func (p *Provider) warm(ctx context.Context, s vm.Spec) error {
	if p.cfg.Image.Hash == "" || p.cfg.CacheDir == "" {
		return errors.New("the image has no hash, or there is no cache folder")
	}
	key, err := p.goldenKeyOf(ctx, s)
	if err != nil {
		return err
	}
	root := filepath.Join(p.cfg.CacheDir, goldenDir)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	unlock, err := vm.LockFile(ctx, filepath.Join(root, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, ok, err := p.find(key); ok {
		return nil
	} else if err != nil {
		p.cfg.Log.Warn("a golden snapshot is damaged, and made again", "error", err)
	}
	f, err := p.make(ctx, root, key, s)
	if err != nil {
		return err
	}
	p.goldens.set(key.hash(), f, true)
	return errors.Join(p.tryOut(ctx, key, s), prune(root, key.hash()))
}

// make boots a machine, has it warm up, and saves it.
func (p *Provider) make(ctx context.Context, root string, key goldenKey, s vm.Spec) (f files, err error) {
	m, err := p.start(ctx, s, p.bootPlan(s))
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if p.cfg.Warmup.Run != nil {
		within, cancel := context.WithTimeoutCause(ctx, warmupWithin, fmt.Errorf("its warm-up took more than %v", warmupWithin))
		defer cancel()
		if err := p.cfg.Warmup.Run(within, m); err != nil {
			return f, fmt.Errorf("warm up: %w", err)
		}
	}
	tmp := files{filepath.Join(root, ".new-"+m.id)}
	defer os.RemoveAll(tmp.dir)
	if _, err := m.save(ctx, tmp.dir, false); err != nil {
		return f, err
	}
	man := manifest{Key: key, Made: time.Now().UTC(), Files: map[string]string{}}
	for _, name := range []string{stateFile, memoryFile, overlayFile} {
		if man.Files[name], err = hashFile(tmp.path(name)); err != nil {
			return f, err
		}
	}
	b, err := json.MarshalIndent(man, "", "  ")
	if err == nil {
		err = os.WriteFile(tmp.path(goldenManifest), b, 0o600)
	}
	f = files{filepath.Join(root, key.hash())}
	if err == nil {
		err = os.RemoveAll(f.dir)
	}
	if err == nil {
		err = os.Rename(tmp.dir, f.dir)
	}
	return f, err
}

// tryOut restores a machine before a snapshot is called good: one that does not work costs time here, and not jobs.
func (p *Provider) tryOut(ctx context.Context, key goldenKey, s vm.Spec) error {
	f, _, _ := p.goldens.get(key.hash())
	s.ID += "-try"
	m, err := p.start(ctx, s, p.loadPlan(f))
	if err != nil {
		p.goldens.set(key.hash(), f, false)
		return fmt.Errorf("no machine could be restored from the new snapshot: %w", err)
	}
	return m.Close()
}

// prune removes the oldest snapshots but for a few, and what was not finished.
func prune(root, keep string) error {
	list, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	type old struct {
		name string
		made time.Time
	}
	var olds []old
	for _, d := range list {
		info, err := d.Info()
		if !d.IsDir() || d.Name() == keep || err != nil {
			continue
		}
		if strings.HasPrefix(d.Name(), ".new-") { // nobody else makes one: the lock is held
			err = os.RemoveAll(filepath.Join(root, d.Name()))
		} else {
			olds = append(olds, old{d.Name(), info.ModTime()})
		}
		if err != nil {
			return err
		}
	}
	slices.SortFunc(olds, func(a, b old) int { return b.made.Compare(a.made) })
	for _, o := range olds[min(len(olds), keepGoldens-1):] {
		if err := os.RemoveAll(filepath.Join(root, o.name)); err != nil {
			return err
		}
	}
	return nil
}
