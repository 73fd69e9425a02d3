package vm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Journal holds a folder per machine, <Dir>/<id>/, with a record of everything that the machine has on the
// host. A resource is written down before it is made, so that a server that was killed leaves nothing that
// the next one cannot find. It is safe for concurrent use, also by several servers.
//
// The record is journal.jsonl: a first line that names the machine and its owner, then one line per resource,
// only ever appended. Lines that outlive a power failure (paths) are synced; a process does not outlive one.
type Journal struct {
	Dir      string
	Volatile bool // nobody wants it after a power failure: nothing is synced
}

// Entry is what the journal knows of one machine.
type Entry struct {
	ID        string    `json:"id"`
	Provider  string    `json:"provider"` // "process", "qemu", …
	Created   time.Time `json:"created"`
	Owner     Process   `json:"owner"` // the server that made the machine, or adopted it
	Mark      string    `json:"mark"`  // in the environment of the machine's first process, see Record.Env
	Paths     []string  `json:"paths,omitempty"`
	Processes []Process `json:"processes,omitempty"`
	Network   []NetItem `json:"network,omitempty"`
	Cgroups   []string  `json:"cgroups,omitempty"`
	Needs     []string  `json:"needs,omitempty"` // ids of other entries, of things that are to live as long
}

// Reaped is a machine that Reap freed, or tried to.
type Reaped struct {
	Entry
	Killed int   // processes
	Err    error // nil: nothing of it is left
}

// ErrMachineExists is Open's for an id that is in use.
var ErrMachineExists = errors.New("a machine of this id exists")

// ErrOwned is Adopt's for a machine whose owner is alive and not this process.
var ErrOwned = errors.New("the machine belongs to another server that is alive")

// journalFile is the record inside a machine's folder.
const journalFile = "journal.jsonl"

// maxJournal bounds a record, in bytes: what is larger was not written by us.
const maxJournal = 1 << 20

// unfinished begins the name of a folder that is not a machine's yet.
const unfinished = ".new-"

// unfinishedAge is how old a folder without a record must be before Reap takes it for the rest of a crash.
const unfinishedAge = time.Minute

// ValidID reports whether id may name a machine: letters, digits and '-', at most 64.
func ValidID(id string) bool {
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return len(id) > 0 && len(id) <= 64
}

// line is one line of a record after the first: exactly one field is set.
type line struct {
	Path    string   `json:"path,omitempty"`
	Process *Process `json:"process,omitempty"`
	Owner   *Process `json:"owner,omitempty"`
	Network *NetItem `json:"network,omitempty"`
	Cgroup  string   `json:"cgroup,omitempty"`
	Need    string   `json:"need,omitempty"`
	ID      string   `json:"id,omitempty"` // of Rename
}

// Open makes the folder of a new machine and writes its first line. The caller ends it with Record.Free.
// An id in use is ErrMachineExists.
func (j Journal) Open(id, provider string) (*Record, error) {
	if !ValidID(id) {
		return nil, fmt.Errorf("machine id %q: want 1 to 64 letters, digits and '-'", id)
	}
	owner, err := FindProcess(os.Getpid())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(j.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	// A folder appears under its name with its first line in it, or not at all.
	tmp, err := MakeFolder(j.Dir, unfinished)
	if err != nil {
		return nil, fmt.Errorf("journal of machine %s: %w", id, err)
	}
	r := &Record{dir: filepath.Join(j.Dir, id), volatile: j.Volatile, entry: Entry{
		ID: id, Provider: provider, Created: time.Now().UTC(), Owner: owner, Mark: rand.Text(),
	}}
	err = appendLine(filepath.Join(tmp, journalFile), r.entry, !j.Volatile)
	if err == nil {
		err = os.Rename(tmp, r.dir)
	}
	if err != nil {
		os.RemoveAll(tmp)
		if errors.Is(err, fs.ErrExist) {
			err = ErrMachineExists
		}
		return nil, fmt.Errorf("journal of machine %s: %w", id, err)
	}
	if j.Volatile {
		return r, nil
	}
	return r, syncDir(j.Dir)
}

// Adopt takes over a machine whose owner is gone and makes this process its owner. The machine's processes
// may be dead: Record.Entry tells. ErrOwned when the owner is alive and not this process.
func (j Journal) Adopt(id string) (*Record, error) {
	if !ValidID(id) {
		return nil, fmt.Errorf("machine id %q: want 1 to 64 letters, digits and '-'", id)
	}
	owner, err := FindProcess(os.Getpid())
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(j.Dir, id)
	e, err := readEntry(dir)
	if err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", id, err)
	}
	if e.Owner != owner {
		if e.Owner.Alive() {
			return nil, fmt.Errorf("adopt machine %s: %w", id, ErrOwned)
		}
		if err := appendLine(filepath.Join(dir, journalFile), line{Owner: &owner}, true); err != nil {
			return nil, fmt.Errorf("adopt machine %s: %w", id, err)
		}
		e.Owner = owner
	}
	return &Record{dir: dir, entry: e}, nil
}

// Entry returns what is known of one machine; fs.ErrNotExist if there is none of that id.
func (j Journal) Entry(id string) (Entry, error) {
	if !ValidID(id) {
		return Entry{}, fmt.Errorf("machine id %q: want 1 to 64 letters, digits and '-'", id)
	}
	return readEntry(filepath.Join(j.Dir, id))
}

// List returns the machines in the journal, by id. Folders without a readable record are left out.
func (j Journal) List() ([]Entry, error) {
	names, err := j.folders()
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, name := range names {
		if !ValidID(name) {
			continue
		}
		if e, err := readEntry(filepath.Join(j.Dir, name)); err == nil {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// Reap frees every machine whose owner is gone and that keep (which may be nil) does not ask for, and nothing that a
// machine needs which is kept: its processes, never a recycled pid, its paths, its folder. It goes on after a failure,
// which it reports in the Reaped; the error is the journal's own, or ctx's.
func (j Journal) Reap(ctx context.Context, keep func(id string) bool) ([]Reaped, error) {
	names, err := j.folders()
	if err != nil {
		return nil, err
	}
	kept := map[string]bool{}
	for _, name := range names {
		if keep == nil || !keep(name) {
			continue
		}
		kept[name] = true
		if e, err := readEntry(filepath.Join(j.Dir, name)); err == nil {
			for _, id := range e.Needs {
				kept[id] = true
			}
		}
	}
	var reaped []Reaped
	for _, name := range names {
		if ctx.Err() != nil {
			return reaped, context.Cause(ctx)
		}
		dir := filepath.Join(j.Dir, name)
		e, err := readEntry(dir)
		if err != nil || !ValidID(name) {
			// Nothing is made before the first line is written: there is only the folder.
			if info, err := os.Lstat(dir); madeByTheDead(name, unfinished) || err == nil && time.Since(info.ModTime()) > unfinishedAge {
				reaped = append(reaped, Reaped{Entry: Entry{ID: name}, Err: removeAll(dir)})
			}
			continue
		}
		if e.Owner.Alive() || kept[name] {
			continue
		}
		r := &Record{dir: dir, entry: e}
		n, err := r.free(ctx)
		reaped = append(reaped, Reaped{Entry: e, Killed: n, Err: err})
	}
	return reaped, nil
}

// folders lists what is in the journal's folder, sorted; a journal that was never written is empty.
func (j Journal) folders() ([]string, error) {
	list, err := os.ReadDir(j.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var names []string
	for _, d := range list {
		if d.IsDir() && (ValidID(d.Name()) || strings.HasPrefix(d.Name(), unfinished)) {
			names = append(names, d.Name())
		}
	}
	return names, nil
}

// Record is the journal's folder of one machine that is alive. It is safe for concurrent use.
type Record struct {
	dir      string
	volatile bool

	mu    sync.Mutex
	entry Entry
	ended bool
	freed bool
}

// ID is the machine's.
func (r *Record) ID() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entry.ID
}

// Dir is the machine's own folder, until Rename. Everything in it goes with Free; it need not be journalled by AddPath.
func (r *Record) Dir() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dir
}

// Rename gives the machine another id, and its folder the name of that. Who is in the folder stays in it. An id in use is
// ErrMachineExists; after an error the machine has either id, and is to be freed.
func (r *Record) Rename(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !ValidID(id) {
		return fmt.Errorf("journal of machine %s: id %q: want 1 to 64 letters, digits and '-'", r.entry.ID, id)
	}
	dir := filepath.Join(filepath.Dir(r.dir), id)
	err := os.Rename(r.dir, dir) // which never replaces another machine's: there is something in it
	if errors.Is(err, fs.ErrExist) {
		err = ErrMachineExists
	}
	if err == nil {
		r.dir = dir
		err = appendLine(filepath.Join(dir, journalFile), line{ID: id}, false) // after a power failure either name is as good
	}
	if err != nil {
		return fmt.Errorf("journal of machine %s: rename it to %s: %w", r.entry.ID, id, err)
	}
	r.entry.ID = id
	return nil
}

// Env is a KEY=VALUE for the environment of the machine's first process. By it Reap finds a process that was
// started in the moment between fork and AddProcess.
func (r *Record) Env() string { return markKey + r.entry.Mark }

// Entry returns a copy of what is journalled.
func (r *Record) Entry() Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entry
	e.Paths, e.Processes, e.Network = slices.Clone(e.Paths), slices.Clone(e.Processes), slices.Clone(e.Network)
	e.Cgroups, e.Needs = slices.Clone(e.Cgroups), slices.Clone(e.Needs)
	return e
}

// AddPath writes down a file or folder outside Dir, which must be absolute, before it is made.
func (r *Record) AddPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
		return fmt.Errorf("journal of machine %s: path %q: want an absolute one", r.entry.ID, path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := appendLine(filepath.Join(r.dir, journalFile), line{Path: path}, !r.volatile); err != nil {
		return fmt.Errorf("journal of machine %s: %w", r.entry.ID, err)
	}
	r.entry.Paths = append(r.entry.Paths, path)
	return nil
}

// AddNetwork writes down a piece of the host's network before it is made. Free removes the last one first.
func (r *Record) AddNetwork(items ...NetItem) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range items {
		err := n.valid()
		if err == nil { // a power failure takes the item too: nothing is synced
			err = appendLine(filepath.Join(r.dir, journalFile), line{Network: &n}, false)
		}
		if err != nil {
			return fmt.Errorf("journal of machine %s: %w", r.entry.ID, err)
		}
		r.entry.Network = append(r.entry.Network, n)
	}
	return nil
}

// AddNeed writes down that another entry of the journal is to live as long as this machine: Reap keeps both or none.
func (r *Record) AddNeed(ids ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if err := appendLine(filepath.Join(r.dir, journalFile), line{Need: id}, false); err != nil {
			return fmt.Errorf("journal of machine %s: %w", r.entry.ID, err)
		}
		r.entry.Needs = append(r.entry.Needs, id)
	}
	return nil
}

// AddCgroup writes down a control group's folder before it is made. Free kills what is in it.
func (r *Record) AddCgroup(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return fmt.Errorf("journal of machine %s: cgroup %q: want an absolute path", r.entry.ID, dir)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := appendLine(filepath.Join(r.dir, journalFile), line{Cgroup: dir}, false); err != nil {
		return fmt.Errorf("journal of machine %s: %w", r.entry.ID, err)
	}
	r.entry.Cgroups = append(r.entry.Cgroups, dir)
	return nil
}

// AddProcess writes down a process, by pid and start time, right after it was started with Env.
func (r *Record) AddProcess(pid int) error {
	p, err := FindProcess(pid)
	if err != nil {
		return fmt.Errorf("journal of machine %s: %w", r.entry.ID, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := appendLine(filepath.Join(r.dir, journalFile), line{Process: &p}, false); err != nil {
		return fmt.Errorf("journal of machine %s: %w", r.entry.ID, err)
	}
	r.entry.Processes = append(r.entry.Processes, p)
	return nil
}

// Ended says that the journalled processes have ended, and that the last of them left nothing running below them: Free,
// which would otherwise look at every process of the host, looks for none.
func (r *Record) Ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

// Free kills the machine's processes with all that descend from them, removes its paths and, last, its folder.
// It is idempotent, and may be called again after an error. Children of this process are killed, not reaped:
// that is for the one who started them.
func (r *Record) Free(ctx context.Context) error {
	_, err := r.free(ctx)
	return err
}

func (r *Record) free(ctx context.Context) (killed int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.freed {
		return 0, nil
	}
	processes := r.entry.Processes
	if !r.ended && !slices.ContainsFunc(processes, Process.Alive) { // there may be one that was not written down yet
		processes = findMarked(r.entry.Mark)
	}
	killed, err = KillTrees(ctx, processes)
	if err != nil {
		return killed, fmt.Errorf("machine %s: %w", r.entry.ID, err)
	}
	for _, dir := range r.entry.Cgroups {
		err = errors.Join(err, removeCgroup(ctx, dir))
	}
	for _, n := range slices.Backward(r.entry.Network) {
		err = errors.Join(err, n.Remove())
	}
	for _, p := range r.entry.Paths {
		err = errors.Join(err, removeAll(p))
	}
	if err == nil {
		err = removeAll(r.dir)
	}
	if err != nil {
		return killed, fmt.Errorf("machine %s: %w", r.entry.ID, err)
	}
	r.freed = true
	return killed, nil
}

// readEntry reads a record. A torn last line is what a crash leaves: the resource was not made.
func readEntry(dir string) (Entry, error) {
	f, err := os.Open(filepath.Join(dir, journalFile))
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	return decodeEntry(io.LimitReader(f, maxJournal))
}

func decodeEntry(r io.Reader) (Entry, error) {
	var e Entry
	d := json.NewDecoder(r)
	if err := d.Decode(&e); err != nil {
		return Entry{}, fmt.Errorf("first line of %s: %w", journalFile, err)
	}
	e.Paths, e.Processes, e.Network, e.Cgroups, e.Needs = nil, nil, nil, nil, nil // which have lines of their own
	if !ValidID(e.ID) {
		return Entry{}, fmt.Errorf("first line of %s: machine id %q", journalFile, e.ID)
	}
	for {
		var l line
		if err := d.Decode(&l); err != nil {
			return e, nil
		}
		if l.Owner != nil {
			e.Owner = *l.Owner
		}
		if filepath.IsAbs(l.Cgroup) && filepath.Clean(l.Cgroup) == l.Cgroup {
			e.Cgroups = append(e.Cgroups, l.Cgroup)
		}
		if ValidID(l.ID) {
			e.ID = l.ID
		}
		if ValidID(l.Need) {
			e.Needs = append(e.Needs, l.Need)
		}
		if l.Process != nil {
			e.Processes = append(e.Processes, *l.Process)
		}
		if l.Network != nil && l.Network.valid() == nil {
			e.Network = append(e.Network, *l.Network)
		}
		if filepath.IsAbs(l.Path) && filepath.Clean(l.Path) != "/" {
			e.Paths = append(e.Paths, l.Path)
		}
	}
}

// appendLine adds v as a line of JSON to the file at path, in one write.
func appendLine(path string, v any, sync bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeAll removes a tree, also one with folders that its owner may not write, such as Go's module cache.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
