// Package storetest runs a real PostgreSQL server for tests.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// ErrNone is returned where no PostgreSQL is installed.
var ErrNone = errors.New("no PostgreSQL is installed: apt-get install postgresql")

// startWithin bounds how long a server takes until it answers.
const startWithin = time.Minute

// Server is a server of its own, in a folder that Stop removes, which only its socket reaches.
type Server struct {
	dir, bin  string
	who       *syscall.Credential // nil: this process's user
	cmd       *exec.Cmd
	alive     io.Closer
	databases atomic.Int64
}

// Start makes a server and returns when it answers. The caller stops it. PostgreSQL refuses to run as root: then it runs
// as Debian's user for it.
func Start(ctx context.Context) (_ *Server, err error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return nil, errors.Join(ErrNone, err)
	}
	s := &Server{bin: filepath.Dir(found[len(found)-1])}
	if os.Geteuid() == 0 {
		if s.who, err = credential("postgres"); err != nil {
			return nil, err
		}
	}
	if s.dir, err = os.MkdirTemp("/tmp", "tgr-pg-"); err != nil { // where any user may go, and short: the path of a socket may have 107 bytes
		return nil, err
	}
	if s.who != nil {
		if err := os.Chown(s.dir, int(s.who.Uid), int(s.who.Gid)); err != nil {
			return nil, errors.Join(err, os.RemoveAll(s.dir))
		}
	}
	if out, err := s.command(ctx, "initdb", "-D", s.data(), "-U", "tgr", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync").CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("initdb: %w: %s", err, out), os.RemoveAll(s.dir))
	}
	if err := s.Run(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	return s, nil
}

// New starts a server for the length of a test, which is skipped where no PostgreSQL is installed.
func New(t testing.TB) *Server {
	t.Helper()
	s, err := Start(t.Context())
	if errors.Is(err, ErrNone) {
		t.Skip("NOT TESTED:", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.who}
	return cmd
}

// Run starts a server that was killed, and returns when it answers.
func (s *Server) Run(ctx context.Context) error {
	var log bytes.Buffer
	// The server ends with this process, however that ends: then nobody has the other end of its standard input.
	s.cmd = s.command(context.WithoutCancel(ctx), "postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=400")
	s.cmd.Args = append([]string{"sh", "-c", `"$@" & cat; kill -QUIT $!; wait`, "sh"}, s.cmd.Args...)
	s.cmd.Args[4] = s.cmd.Path
	s.cmd.Path = "/bin/sh"
	s.cmd.Stdout, s.cmd.Stderr = &log, &log
	var err error
	if s.alive, err = s.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	ctx, done := context.WithTimeout(ctx, startWithin)
	defer done()
	for {
		out, err := s.command(ctx, "pg_isready", "-h", s.dir, "-U", "tgr", "-d", "postgres").CombinedOutput()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			s.Kill()
			return fmt.Errorf("postgres does not answer: %w: %s %s", err, out, &log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Database makes an empty database and returns its address.
func (s *Server) Database(ctx context.Context) (string, error) {
	name := fmt.Sprintf("tgr%d", s.databases.Add(1))
	if out, err := s.command(ctx, "createdb", "-h", s.dir, "-U", "tgr", name).CombinedOutput(); err != nil {
		return "", fmt.Errorf("createdb: %w: %s", err, out)
	}
	return fmt.Sprintf("host=%s user=tgr dbname=%s", s.dir, name), nil
}

// Kill ends the server at once, as if the power had failed: what runs is lost, what was committed is not.
func (s *Server) Kill() {
	s.alive.Close()
	s.cmd.Wait()
}

// Stop ends the server and removes what it has.
func (s *Server) Stop() error {
	s.Kill()
	return os.RemoveAll(s.dir)
}
