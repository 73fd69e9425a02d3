// Package joblog keeps the logs of jobs: it appends, follows and reads them, in compressed chunk files.
//
// The log of one try of a job is a file of independent zstd frames, each after a header (a skippable frame, so that
// zstdcat shows the whole log) that says which lines, steps and times it holds: the headers are the index. The
// lines since the last frame are in a plain file beside it, so that after a crash all that was flushed is readable.
// A line is stored as "nanoseconds step text".
package joblog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/terraphim/tgr"
)

// Limits bound a log; a zero field takes its default.
type Limits struct {
	Line int64 // bytes of one line; a longer one is split. 1 MiB, which is also the most
	Step int64 // bytes of text of one step. 100 MiB
	Job  int64 // bytes of text of the whole log. 500 MiB
	Ring int64 // bytes of the latest lines beyond a limit that are kept, to be written at the end. 1 MiB
}

// Config says where logs are. Dir is required.
type Config struct {
	Dir    string // made with mode 0700 where it does not exist
	Limits Limits
	Now    func() time.Time // nil: time.Now; for lines without a time
}

// Store is a folder of logs. Its methods may be called concurrently.
type Store struct {
	cfg Config
	enc *zstd.Encoder
	dec *zstd.Decoder

	mu      sync.Mutex
	writers map[tgr.JobID]*Writer
	closed  bool
}

// Open opens the folder of cfg and makes it where there is none. The caller closes the store.
func Open(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, tgr.Errorf("joblog.open", tgr.Invalid, "the logs need a folder")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &cfg.Limits
	for _, f := range []struct {
		v   *int64
		def int64
	}{{&l.Line, maxLine}, {&l.Step, 100 << 20}, {&l.Job, 500 << 20}, {&l.Ring, 1 << 20}} {
		if *f.v <= 0 {
			*f.v = f.def
		}
	}
	l.Line = min(l.Line, maxLine)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault("open", err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fault("open", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecoderConcurrency(0))
	if err != nil {
		return nil, fault("open", err)
	}
	return &Store{cfg: cfg, enc: enc, dec: dec, writers: make(map[tgr.JobID]*Writer)}, nil
}

// Close closes every writer. It may be called twice.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	var open []*Writer
	for _, w := range s.writers {
		open = append(open, w)
	}
	s.mu.Unlock()
	var errs []error
	for _, w := range open {
		errs = append(errs, w.Close())
	}
	return errors.Join(errs...)
}

// Create begins the log of a try (from 1) of a job. There may be one writer of a job at a time: a second is refused
// with [tgr.Conflict]. A log that exists for the same try is continued. The caller closes the writer.
func (s *Store) Create(job tgr.JobID, try int) (*Writer, error) {
	if job <= 0 || try <= 0 {
		return nil, tgr.Errorf("joblog.create", tgr.Invalid, "there is no try %d of job %d", try, job)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, tgr.Errorf("joblog.create", tgr.Unavailable, "the logs are closed")
	}
	if s.writers[job] != nil {
		return nil, tgr.Errorf("joblog.create", tgr.Conflict, "the log of job %d is being written", job)
	}
	if err := os.MkdirAll(s.folder(job), 0o700); err != nil {
		return nil, fault("create", err)
	}
	w, err := newWriter(s, job, s.file(job, try))
	if err != nil {
		return nil, fault("create", err)
	}
	w.try = try
	s.writers[job] = w
	return w, nil
}

// Remove deletes the logs of all tries of a job; a job without any is no error. One that is being written is
// refused with [tgr.Conflict].
func (s *Store) Remove(job tgr.JobID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writers[job] != nil {
		return tgr.Errorf("joblog.remove", tgr.Conflict, "the log of job %d is being written", job)
	}
	return fault("remove", os.RemoveAll(s.folder(job)))
}

// folder is where the logs of a job are. A thousand jobs share a parent.
func (s *Store) folder(job tgr.JobID) string {
	return filepath.Join(s.cfg.Dir, strconv.FormatInt(int64(job)/1000, 10), job.String())
}

// file is the log of a try, without the extension: ".zst" has its frames, ".tail" the lines after them.
func (s *Store) file(job tgr.JobID, try int) string {
	return filepath.Join(s.folder(job), strconv.Itoa(try))
}

// latest finds the highest try of a job.
func (s *Store) latest(job tgr.JobID) (int, error) {
	entries, err := os.ReadDir(s.folder(job))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	try := 0
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".zst")
		if n, err := strconv.Atoi(name); ok && err == nil {
			try = max(try, n)
		}
	}
	if try == 0 {
		return 0, tgr.Errorf("joblog.read", tgr.NotFound, "job %d has no log", job)
	}
	return try, nil
}

// fault turns an error of the file system into one that may cross the room's boundary.
func fault(op string, err error) error {
	var known *tgr.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return &tgr.Error{Op: "joblog." + op, Code: tgr.Unavailable, Message: "the log cannot be read or written", Err: err}
}

// damaged is the error of a log that is not as it was written.
func damaged(name string, format string, args ...any) error {
	return tgr.Errorf("joblog.read", tgr.Internal, "the log %s is damaged: %s", filepath.Base(filepath.Dir(name))+"/"+filepath.Base(name), fmt.Sprintf(format, args...))
}
