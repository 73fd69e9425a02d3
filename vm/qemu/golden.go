package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// Files of a golden snapshot's folder. All but the manifest are named in it with size and hash.
const (
	goldenDir      = "snapshots" // in the cache folder
	goldenManifest = "manifest.json"
	goldenMemory   = "memory" // packed
	goldenDisk     = "disk"   // packed
	goldenState    = "state"  // QEMU's migration stream
)

const (
	// goldenFormat counts changes of what a snapshot is: of its files, and of how a machine is restored from it.
	goldenFormat = 5
	maxState     = 64 << 20 // bytes; it has about 60 KB
	maxManifest  = 1 << 20

	// spareMemory is what must stay available on the host, in bytes, when a snapshot is loaded.
	spareMemory = 512 << 20
	// restoreWithin is what a restore, which takes some 50 ms, may take on a busy host.
	restoreWithin = 30 * time.Second
)

// goldenKey is everything that a snapshot depends on: a machine is restored only from one with the same key.
type goldenKey struct {
	Format  int      `json:"format"`
	Image   string   `json:"image"`   // hash of kernel, initramfs, which holds the agent, and root
	QEMU    string   `json:"qemu"`    // its version, and size and time of its file
	CPU     string   `json:"cpu"`     // the host's, with KVM
	Disk    int64    `json:"disk"`    // bytes
	Warmup  string   `json:"warmup"`  // its ID
	Command []string `json:"command"` // QEMU's, without a name: accelerator, CPU model, memory, processors, devices
}

func (k goldenKey) hash() string {
	b, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// goldenKeyOf settles the key of a machine's snapshot.
func (p *Provider) goldenKeyOf(ctx context.Context, a args, s vm.Spec) (goldenKey, error) {
	binary, err := p.lookBinary()
	if err != nil {
		return goldenKey{}, err
	}
	version, err := p.goldens.version(ctx, binary)
	if err != nil {
		return goldenKey{}, err
	}
	a.ID, a.Backing, a.Incoming = "", shared, false
	k := goldenKey{
		Format: goldenFormat, Image: p.cfg.Image.Hash, QEMU: version, Disk: orDefault(s.Disk, p.cfg.Disk),
		Warmup: p.cfg.Warmup.ID, Command: a.argv(),
	}
	if a.KVM {
		k.CPU, err = vm.HostCPU()
	}
	return k, err
}

// manifest vouches for the files of a snapshot.
type manifest struct {
	Key   goldenKey             `json:"key"`
	Made  time.Time             `json:"made"`
	Files map[string]goldenFile `json:"files"`
}

type goldenFile struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// golden is a snapshot that was verified and loaded. Its files are memory that cannot be written any more, by us
// or by a machine that broke out of its guest.
type golden struct {
	key    string
	memory *os.File
	state  *os.File
	disk   []byte // packed
}

func (g *golden) close() {
	g.memory.Close()
	g.state.Close()
}

// goldens are the snapshots of a provider. Its zero value is ready for use.
type goldens struct {
	mu       sync.Mutex
	loaded   map[string]*golden
	refused  map[string]bool // did not restore, or was damaged: not tried again before the next Warm
	versions map[string]string
}

// version describes the binary at path, which it runs once for each state of the file.
func (g *goldens) version(ctx context.Context, binary string) (string, error) {
	fi, err := os.Stat(binary)
	if err != nil {
		return "", err
	}
	file := fmt.Sprintf("%s %d %d", binary, fi.Size(), fi.ModTime().UnixNano())
	g.mu.Lock()
	defer g.mu.Unlock()
	if v, ok := g.versions[file]; ok {
		return v, nil
	}
	key, err := vm.VerdictKey(ctx, binary)
	if err != nil {
		return "", err
	}
	_, version, _ := strings.Cut(key, " ")
	if g.versions == nil {
		g.versions = map[string]string{}
	}
	g.versions[file] = version + ", " + file
	return g.versions[file], nil
}

// goldenOf returns the snapshot of machines like this one, or nil where there is none.
func (p *Provider) goldenOf(ctx context.Context, a args, s vm.Spec) (*golden, error) {
	k, err := p.goldenKeyOf(ctx, a, s)
	if err != nil {
		return nil, err
	}
	return p.find(ctx, k.hash())
}

// find returns the snapshot of this key, loading it if need be, or nil where there is none.
func (p *Provider) find(ctx context.Context, key string) (*golden, error) {
	g := &p.goldens
	g.mu.Lock()
	defer g.mu.Unlock()
	if have := g.loaded[key]; have != nil || g.refused[key] {
		return have, nil
	}
	have, err := loadGolden(ctx, filepath.Join(p.cfg.CacheDir, goldenDir, key), key)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		if ctx.Err() == nil {
			g.refuse(key)
		}
		return nil, err
	}
	if g.loaded == nil {
		g.loaded = map[string]*golden{}
	}
	g.loaded[key] = have
	return have, nil
}

// refuse is called with mu held. Machines that are being restored may still use the snapshot: it is left to the
// garbage collector.
func (g *goldens) refuse(key string) {
	if g.refused == nil {
		g.refused = map[string]bool{}
	}
	g.refused[key] = true
	delete(g.loaded, key)
}

// loadGolden reads a snapshot into memory and compares what it has read with the manifest.
func loadGolden(ctx context.Context, dir, key string) (*golden, error) {
	m, err := readGoldenManifest(dir)
	if err != nil {
		return nil, err
	}
	if m.Key.hash() != key {
		return nil, fmt.Errorf("snapshot %s: its manifest is of another", dir)
	}
	if err := checkMemory(m.Files[goldenMemory].Size); err != nil {
		return nil, err
	}
	g := &golden{key: key}
	var disk bytes.Buffer
	g.memory, err = sealedFile(func(f *os.File) error {
		return m.read(ctx, dir, goldenMemory, func(r io.Reader) error { return unpack(f, r, 1<<50) })
	})
	if err != nil {
		return nil, err
	}
	g.state, err = sealedFile(func(f *os.File) error {
		return errors.Join(
			m.read(ctx, dir, goldenState, func(r io.Reader) error { return copyAll(f, r) }),
			m.read(ctx, dir, goldenDisk, func(r io.Reader) error { return copyAll(&disk, r) }),
		)
	})
	if err != nil {
		g.memory.Close()
		return nil, err
	}
	g.disk = disk.Bytes()
	now := time.Now()
	os.Chtimes(filepath.Join(dir, goldenManifest), now, now) // of the last use, for prune
	return g, nil
}

func copyAll(w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, r)
	return err
}

func readGoldenManifest(dir string) (manifest, error) {
	var m manifest
	f, err := os.Open(filepath.Join(dir, goldenManifest))
	if err != nil {
		return m, err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxManifest)).Decode(&m); err != nil {
		return m, fmt.Errorf("snapshot %s: %w", dir, err)
	}
	return m, nil
}

// read passes a file of the snapshot to fn, and then says whether it was what the manifest vouches for.
func (m manifest) read(ctx context.Context, dir, name string, fn func(io.Reader) error) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("snapshot is damaged: %s is missing", filepath.Join(dir, name))
	}
	defer f.Close()
	want, h := m.Files[name], newHasher()
	counted := &countedReader{ctx: ctx, r: io.TeeReader(io.LimitReader(f, want.Size+1), h)}
	if err = fn(counted); err == nil {
		err = copyAll(io.Discard, counted)
	}
	sum := h.sum()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case counted.n != want.Size || sum != want.SHA256:
		return fmt.Errorf("snapshot is damaged: %s is not what was written", f.Name())
	case err != nil:
		return fmt.Errorf("snapshot: %s: %w", f.Name(), err)
	}
	return nil
}

// hasher is a SHA-256 that is computed beside what is done with the bytes, which takes as long. Only sum ends it.
type hasher struct {
	full, empty chan []byte
	chunk       []byte // is being filled
	done        chan string
}

const (
	hashChunk  = 256 << 10 // bytes that are handed over at once, and fit a processor's cache
	hashChunks = 8
)

func newHasher() *hasher {
	h := &hasher{full: make(chan []byte, hashChunks), empty: make(chan []byte, hashChunks), done: make(chan string)}
	for range hashChunks {
		h.empty <- make([]byte, 0, hashChunk)
	}
	h.chunk = <-h.empty
	go func() {
		sum := sha256.New()
		for b := range h.full {
			sum.Write(b)
			h.empty <- b[:0]
		}
		h.done <- hex.EncodeToString(sum.Sum(nil))
	}()
	return h
}

// Write never fails. It waits where the hash is behind.
func (h *hasher) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), cap(h.chunk)-len(h.chunk))
		h.chunk, rest = append(h.chunk, rest[:n]...), rest[n:]
		if len(h.chunk) == cap(h.chunk) {
			h.full <- h.chunk
			h.chunk = <-h.empty
		}
	}
	return len(b), nil
}

// sum returns the hash of all that was written, in hexadecimal.
func (h *hasher) sum() string {
	h.full <- h.chunk
	close(h.full)
	return <-h.done
}

// countedReader counts what passes through it, until ctx ends.
type countedReader struct {
	ctx context.Context
	r   io.Reader
	n   int64
}

func (c *countedReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// sealedFile makes a file in memory that nobody can change once fill has written it.
func sealedFile(fill func(*os.File) error) (*os.File, error) {
	f, err := memoryFile()
	if err != nil {
		return nil, err
	}
	if err = fill(f); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// memfdName is what /proc calls our files in memory.
const memfdName = "tgr-snapshot"

// memoryFile makes a file in memory.
func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate(memfdName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, &vm.InfraError{Op: "qemu: memory file", Err: err}
	}
	return os.NewFile(uintptr(fd), memfdName), nil
}

// memoryFile makes a file for the memory of a machine.
func (a args) memoryFile() (*os.File, error) {
	f, err := memoryFile()
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(a.mib() << 20); err != nil {
		f.Close()
		return nil, &vm.InfraError{Op: "qemu: memory file", Err: err}
	}
	return f, nil
}

// reopen opens a file in memory again, to be read from its beginning.
func reopen(f *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// checkMemory refuses to take size bytes of a host that has not enough.
func checkMemory(size int64) error {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil && kib<<10 < size+spareMemory {
			return &vm.InfraError{Op: "qemu: snapshot", Err: fmt.Errorf("%d MiB of memory available, want %d", kib>>10, (size+spareMemory)>>20)}
		}
	}
	return nil
}
