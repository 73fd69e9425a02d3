package dispatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
)

// Tapes keeps what running jobs were told, in a folder, so that a server that starts again goes on with those whose
// machines have outlived the one before. A tape holds the job's secrets: the folder is this user's alone, and in memory. It
// is of no use after a reboot, as no machine is.
type Tapes struct{ Dir string }

const (
	tapeFormat = 1
	tapeSuffix = ".tape"
	maxTape    = 32 << 20 // bytes of one; a job that was told more begins anew
)

// tapeHead is the first line of a tape: what the job began with.
type tapeHead struct {
	tgr.Redacted `json:"-"`

	Version   int               `json:"format"`
	Job       tgr.JobID         `json:"job"`
	Lease     string            `json:"lease"`
	Machine   string            `json:"machine"`
	Port      string            `json:"port,omitempty"` // that the services are reached at in the machine
	ActionEnv map[string]string `json:"action_env,omitempty"`
	Notes     []string          `json:"notes,omitempty"`
	Runner    runner.Job        `json:"runner"`
}

// tape is the file of one job. It is safe for concurrent use.
type tape struct {
	mu     sync.Mutex
	file   *os.File
	size   int64
	spoilt bool
	frozen bool // nothing is taken down any more
	ended  bool
}

// Append implements runner.Tape.
func (t *tape) Append(line []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.frozen {
		return nil
	}
	if t.size += int64(len(line)) + 1; t.size > maxTape {
		t.spoilt = true
		return fmt.Errorf("there is more to be kept of the job than %d bytes", maxTape)
	}
	if _, err := t.file.Write(append(line, '\n')); err != nil {
		t.spoilt = true
		return err
	}
	t.spoilt = t.spoilt || runner.Spoils(line)
	return nil
}

// freeze keeps the tape as it is, and reports whether the job can go on from it.
func (t *tape) freeze() bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.frozen = true
	return !t.spoilt
}

// end closes the tape, and removes it unless the job is to go on from it.
func (t *tape) end(left bool) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil
	}
	t.frozen, t.ended = true, true
	err := t.file.Close()
	if left {
		return err
	}
	return errors.Join(err, os.Remove(t.file.Name()))
}

func (s *Tapes) path(job tgr.JobID) string { return filepath.Join(s.Dir, job.String()+tapeSuffix) }

// create begins the tape of a job, and returns the job as it would be read from there: whoever goes on with it has the
// same.
func (s *Tapes) create(h tapeHead) (*tape, runner.Job, error) {
	h.Version = tapeFormat
	var again tapeHead
	b, err := json.Marshal(h)
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil {
		return nil, runner.Job{}, err
	}
	if err := os.Remove(s.path(h.Job)); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier try
		return nil, runner.Job{}, err
	}
	f, err := os.OpenFile(s.path(h.Job), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, runner.Job{}, err
	}
	t := &tape{file: f}
	if err := t.Append(b); err != nil {
		return nil, runner.Job{}, errors.Join(err, t.end(false))
	}
	return t, again.Runner, nil
}

// Resumption is a job that goes on where an earlier server left it.
type Resumption struct {
	tgr.Redacted

	Lease     *Lease
	Machine   string // id of its machine, which is to be kept
	head      tapeHead
	recording *runner.Recording
	path      string
	whole     int64 // bytes of the tape without a torn line
	tape      *tape // once it is open
	logged    int   // lines of the job's steps in its log
}

// Resumable finds the jobs to go on with: those whose tape is good, and whose lease retake gives back. The tapes of others
// are removed; why is told to skipped.
func (s *Tapes) Resumable(ctx context.Context, retake func(context.Context, tgr.JobID, string) (*Lease, error), skipped func(job string, err error)) ([]*Resumption, error) {
	list, err := os.ReadDir(s.Dir)
	if err != nil {
		return nil, err
	}
	var found []*Resumption
	for _, d := range list {
		name, ok := strings.CutSuffix(d.Name(), tapeSuffix)
		if !ok {
			continue
		}
		path := filepath.Join(s.Dir, d.Name())
		r, err := readTape(path)
		if err == nil && r.head.Job.String() != name {
			err = fmt.Errorf("%s is the tape of job %d", d.Name(), r.head.Job)
		}
		if err == nil {
			r.Lease, err = retake(ctx, r.head.Job, r.head.Lease)
		}
		if err != nil {
			skipped(name, err)
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			continue
		}
		found = append(found, r)
	}
	return found, nil
}

func readTape(path string) (*Resumption, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxTape+1))
	if err != nil {
		return nil, err
	}
	b = b[:bytes.LastIndexByte(b, '\n')+1] // a torn line was not taken down
	first, rest, _ := bytes.Cut(b, []byte{'\n'})
	r := &Resumption{path: path, whole: int64(len(b))}
	if err := json.Unmarshal(first, &r.head); err != nil {
		return nil, fmt.Errorf("the first line of %s: %w", path, err)
	}
	if r.head.Version != tapeFormat {
		return nil, fmt.Errorf("the tape is of format %s, and this program's is %d", strconv.Itoa(r.head.Version), tapeFormat)
	}
	if r.recording, err = runner.ReadRecording(bytes.NewReader(rest)); err != nil {
		return nil, err
	}
	r.Machine = r.head.Machine
	return r, nil
}

// reopen goes on with the tape.
func (r *Resumption) reopen() (*tape, error) {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(r.whole); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &tape{file: f, size: r.whole}, nil
}
