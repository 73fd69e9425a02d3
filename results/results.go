// Package results is what the actions of a job talk to: the cache service (v1 and v2), the artifact service (v4), the
// uploads behind both, and the issuer of identity tokens. It speaks GitHub's protocols to GitHub's own clients.
//
// A Service keeps everything below one folder: a small SQLite database of what there is, and the bytes by their hash.
// A Session is the services of one job, for as long as it runs: it serves a listener that only this job reaches, and
// believes only this job's token. Everything that a job sends is hostile: it is bounded and checked, and no name of it
// ever becomes a path.
package results

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/terraphim/tgr"
)

// Config is what a Service is made of. Dir is required.
type Config struct {
	Dir   string // made with mode 0700: the database, the keys, uploads, and the bytes where Blobs is nil
	Blobs Blobs  // where bytes are kept; nil: below Dir
	// Issuer is the address under which others find the issuer's keys, without a slash at its end: the iss claim of
	// identity tokens. "": none are issued.
	Issuer string
	Limits Limits
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // nil: nothing is logged
}

// Limits bounds what jobs may keep here. The zero value means the defaults, which are given with each field.
type Limits struct {
	CacheBytes    int64         // of all caches of one repository: 10 GiB; the least recently used go first
	ArtifactBytes int64         // of all artifacts of one run: 10 GiB
	Artifacts     int           // of one run: 500
	Retention     time.Duration // of artifacts, at most and unless they say less: 90 days
	BlobBytes     int64         // of one cache or artifact: 10 GiB
	JobBytes      int64         // sent by one job, whatever became of it: 40 GiB
	Blocks        int           // of one upload: 10,000
	Uploads       int           // begun by one job and not finished: 1,000
	Idle          time.Duration // how long a transfer may stand still: 30 s
}

func (l Limits) orDefaults() Limits {
	const gib = 1 << 30
	for _, f := range []struct {
		field *int64
		value int64
	}{{&l.CacheBytes, 10 * gib}, {&l.ArtifactBytes, 10 * gib}, {&l.BlobBytes, 10 * gib}, {&l.JobBytes, 40 * gib}} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	for _, f := range []struct {
		field *int
		value int
	}{{&l.Artifacts, 500}, {&l.Blocks, 10_000}, {&l.Uploads, 1000}} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	if l.Retention <= 0 {
		l.Retention = 90 * 24 * time.Hour
	}
	if l.Idle <= 0 {
		l.Idle = 30 * time.Second
	}
	return l
}

// strangers is what caches of untrusted events may take of those of their repository.
func (l Limits) strangers() int64 { return l.CacheBytes / 4 }

// Times of what nobody finishes or fetches.
const (
	unfinishedFor = 24 * time.Hour // an upload of a job that is no more
	urlsFor       = time.Hour      // a signed URL: GitHub's are good for as long
	sweepEvery    = time.Hour
)

// Service keeps caches and artifacts. Create one with Open; its methods are safe for concurrent use, and several
// processes may have the same folder open.
type Service struct {
	cfg   Config
	meta  *meta
	blobs Blobs
	keys  *keyring

	buffers sync.Pool // of uploads

	mu       sync.Mutex
	sessions map[*Session]bool
	reading  map[int64]int // downloads in progress by blob
	closed   bool
	stop     context.CancelFunc
	work     sync.WaitGroup
}

// Open opens the folder, makes it if there is none, and removes what has expired, now and every hour. The caller closes
// the Service.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Dir == "" {
		return nil, tgr.Errorf("results.open", tgr.Invalid, "there is no folder for caches and artifacts")
	}
	cfg.Limits = cfg.Limits.orDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{cfg.Dir, filepath.Join(cfg.Dir, "tmp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("results: %w", err)
		}
	}
	s := &Service{cfg: cfg, blobs: cfg.Blobs, sessions: map[*Session]bool{}, reading: map[int64]int{}}
	if s.blobs == nil {
		s.blobs = &disk{filepath.Join(cfg.Dir, "blobs")}
	}
	var err error
	if s.keys, err = openKeyring(filepath.Join(cfg.Dir, "keys"), cfg.Now); err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	if s.meta, err = openMeta(ctx, filepath.Join(cfg.Dir, "results.db")); err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	sweeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.work.Go(func() { s.sweepNowAndThen(sweeping) })
	return s, nil
}

// Close ends all sessions as they are, so that a later Service may go on with their uploads, and closes the database.
// It is idempotent.
func (s *Service) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	var open []*Session
	for x := range s.sessions {
		open = append(open, x)
	}
	s.mu.Unlock()
	if again {
		return nil
	}
	s.stop()
	for _, x := range open {
		x.halt()
	}
	s.work.Wait()
	return s.meta.close()
}

func (s *Service) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Service) sweepNowAndThen(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("sweep caches and artifacts", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep removes artifacts that have expired, uploads that nobody finishes, what they left on disk, and signing keys that
// have been replaced for long enough. Open does so by itself.
func (s *Service) Sweep(ctx context.Context) error {
	now, jobs := s.cfg.Now(), s.served()
	stale, err := s.meta.stale(ctx, now, now.Add(-unfinishedFor))
	if err != nil {
		return err
	}
	var ids []int64
	for _, b := range stale {
		if b.state == done || !jobs[b.job] {
			ids = append(ids, b.id)
		}
	}
	err = s.remove(ctx, ids...)
	return errors.Join(err, sweepFolder(filepath.Join(s.cfg.Dir, "tmp"), now.Add(-unfinishedFor)), s.keys.rotate(now))
}

// served is the jobs that have a session here.
func (s *Service) served() map[int64]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	jobs := map[int64]bool{}
	for x := range s.sessions {
		jobs[int64(x.job.ID)] = true
	}
	return jobs
}

// sweepFolder removes the files that nobody has written to since then.
func sweepFolder(dir string, since time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.ModTime().Before(since) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// remove removes blobs and the bytes that no other one has.
func (s *Service) remove(ctx context.Context, ids ...int64) error {
	if len(ids) == 0 {
		return nil
	}
	return s.meta.write(ctx, func(t *tx) error {
		for _, id := range ids {
			if err := s.removeIn(t, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// removeIn is remove within a transaction. Bytes go before the transaction ends: until then nobody else can refer to
// them. What a crash leaves in between are entries without bytes, which count as absent.
func (s *Service) removeIn(t *tx, id int64) error {
	hashes, err := t.drop(id)
	if err != nil {
		return err
	}
	return s.removeBytes(t, hashes)
}

func (s *Service) removeBytes(t *tx, hashes []string) error {
	for _, hash := range hashes {
		if err := s.blobs.Remove(t.ctx, hash); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps a blob from being evicted until free is called.
func (s *Service) hold(id int64) (free func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading[id]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.reading[id]--; s.reading[id] == 0 {
			delete(s.reading, id)
		}
	}
}

func (s *Service) held(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reading[id] > 0
}
