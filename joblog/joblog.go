// Package joblog keeps the logs of jobs: it appends, follows and reads them, in compressed chunk files.
//
// A log is one file per try of a job, made of independent zstd frames, and an index beside it that can be
// rebuilt from the frames. Lines are readable after a crash up to the last flush.
package joblog

import (
	"context"
	"iter"
	"time"

	"github.com/terraphim/tgr"
)

// Limits bound a log; a zero field takes its default.
type Limits struct {
	Line int64 // bytes of one line; a longer one is split. 1 MiB
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
}

// Open opens the folder of cfg and makes it where there is none.
func Open(cfg Config) (*Store, error) { panic("body follows") }

// Create begins the log of a try of a job. There may be one writer of a job at a time; a log that exists for
// the same try is continued. The caller closes the writer.
func (s *Store) Create(job tgr.JobID, try int) (*Writer, error) { panic("body follows") }

// Writer appends to one log. Its methods may be called concurrently.
type Writer struct{}

// Append adds lines in order. It returns when they are in the log's buffer, which is flushed every 200 ms or
// 64 KiB; it never waits for readers. An error is that of an earlier flush: the log has ended there.
func (w *Writer) Append(lines ...tgr.LogLine) error { panic("body follows") }

// Close flushes, syncs and ends the log; those who follow it see its end. It may be called twice.
func (w *Writer) Close() error { panic("body follows") }

// Range selects lines of a job's latest try.
type Range struct {
	Try   int   // 0: the latest
	From  int64 // number of the first line, from 0
	Step  int   // only lines of this step; 0: all lines
	Limit int64 // at most this many lines; 0: all
}

// Line is a line with its number in the log, from 0.
type Line struct {
	tgr.LogLine
	Number int64 `json:"n"`
}

// Read yields the lines of r that are in the log now. An error ends the sequence; one of [tgr.NotFound] means that
// the job has no log.
func (s *Store) Read(ctx context.Context, job tgr.JobID, r Range) iter.Seq2[Line, error] {
	panic("body follows")
}

// Follow yields the lines of the latest try from the given number, and goes on with those that are appended until
// the writer closes or ctx ends (then it yields the cause of that). A log without a writer ends after its last line.
// Followers never delay the writer: a slow one catches up from the file.
func (s *Store) Follow(ctx context.Context, job tgr.JobID, from int64) iter.Seq2[Line, error] {
	panic("body follows")
}

// Tail returns the last n lines of the latest try.
func (s *Store) Tail(ctx context.Context, job tgr.JobID, n int) ([]Line, error) {
	panic("body follows")
}

// Remove deletes the logs of all tries of a job. A job that is being written is refused with [tgr.Conflict].
func (s *Store) Remove(job tgr.JobID) error { panic("body follows") }

// Close closes every writer. It may be called twice.
func (s *Store) Close() error { panic("body follows") }
