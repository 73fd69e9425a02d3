package learn

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkStep is what learning from one step costs, its log and the database included: the bar is 1 ms.
func BenchmarkStep(b *testing.B) {
	trace := NewTrace(TraceConfig{Seed: 9, Commits: 120, Jobs: 10, Lines: 60}).Records
	steps := 0
	for _, r := range trace {
		steps += len(r.Job.Steps)
	}
	l := openLearner(b, filepath.Join(b.TempDir(), "learn.db"), runLog(nil))
	defer l.Close()
	b.ResetTimer()
	done := 0
	for done < b.N {
		records := make(runLog, len(trace))
		copy(records, trace)
		for i := range records {
			records[i].Seq += l.cursor
		}
		l.cfg.Source = records
		catchUp(b, l)
		done += steps
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(done), "ns/step")
}

// BenchmarkMillion is the size of what is kept of a million steps of fifty repositories: the bar is 200 MB. It takes minutes,
// and one round is enough: go test -run '^$' -bench Million -benchtime 1x ./learn
func BenchmarkMillion(b *testing.B) {
	const repos, steps = 50, 1_000_000
	path := filepath.Join(b.TempDir(), "learn.db")
	source := &repeated{until: steps}
	for i := range repos {
		t := NewTrace(TraceConfig{Seed: uint64(i), Commits: 60, Jobs: 10, Lines: 3}).Records
		for j := range t {
			t[j].Run.Event.Repo.ID, t[j].Run.Event.Repo.FullName = int64(i+1), fmt.Sprintf("octo/app%d", i)
		}
		source.traces = append(source.traces, t)
	}
	b.ResetTimer()
	l := openLearner(b, path, source)
	catchUp(b, l)
	b.StopTimer()
	l.Close()
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size())/1e6, "MB")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(source.steps), "us/step")
	if info.Size() > 200e6 || source.steps < steps {
		b.Errorf("%d steps are %d bytes", source.steps, info.Size())
	}
}

// repeated is a log that goes on with the same traces, one repository after the other, until there were enough steps.
type repeated struct {
	traces       [][]Record
	seq          int64
	steps, until int
}

// Finished implements Source.
func (r *repeated) Finished(context.Context, int64, int) ([]Record, error) {
	var out []Record
	for len(out) < batch && r.steps < r.until {
		t := r.traces[int(r.seq)/2000%len(r.traces)]
		rec := t[int(r.seq)%len(t)]
		r.seq++
		rec.Seq = r.seq
		rec.Run.Event.SHA = fmt.Sprint(r.seq / 20)
		r.steps += len(rec.Job.Steps)
		out = append(out, rec)
	}
	return out, nil
}
