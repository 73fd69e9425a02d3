package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
)

// tapeLease is how long a job that goes on is this server's before its first beat.
const tapeLease = 2 * 60e9 // nanoseconds: as long as a machine may take to come up

// openTapes finds the folder in memory where running jobs are kept for the next server on this data folder, and the jobs to
// go on with. Without such a place, jobs end with their server.
func (s *server) openTapes(ctx context.Context, owner string) error {
	dir, err := tapesDir(s.c.get("data-dir"))
	if err != nil {
		s.log.Info("jobs that run will not outlive this server", "reason", err)
		return nil
	}
	s.tapes = &dispatch.Tapes{Dir: dir}
	s.resume, err = s.tapes.Resumable(ctx, func(ctx context.Context, job tgr.JobID, token string) (*dispatch.Lease, error) {
		l, err := s.store.Retake(ctx, job, owner, token, tapeLease)
		if err != nil {
			return nil, err
		}
		return &dispatch.Lease{Job: l.Job, Run: l.Run, Token: l.Token, Until: l.Until}, nil
	}, func(job string, err error) {
		s.log.Info("a job that an earlier server ran cannot go on", "job", job, "reason", err)
	})
	return err
}

// kept reports whether a machine is that of a job to go on with.
func (s *server) kept(id string) bool {
	for _, r := range s.resume {
		if r.Machine == id {
			return true
		}
	}
	return false
}

// tapesDir makes the folder: in memory, and this user's alone, because secrets are in it.
func tapesDir(data string) (string, error) {
	memory := memoryFolder()
	if memory == "" {
		return "", errors.New("/dev/shm is not a folder in memory")
	}
	abs, err := filepath.Abs(data)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(abs))
	dir := filepath.Join(memory, fmt.Sprintf("tgr-tapes-%d-%s", os.Geteuid(), hex.EncodeToString(sum[:6])))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || info.Mode().Perm() != 0o700 || int(st.Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s is not a folder of this user's alone", dir)
	}
	return dir, nil
}
