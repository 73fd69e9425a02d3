package learn

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
)

// nasty is text that somebody may put anywhere.
func nasty() *rapid.Generator[string] {
	return rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "\x1f", "\x1e\x1f\x1e", "a\x1fb", "\xff\xfe", "#2", "<*> <n>", "error: \x1b[31m", "../../etc",
		strings.Repeat("x", 5000), strings.Repeat("error ", 500), "echo 'unclosed", "uses @@@", "\u202e\u200b"}))
}

// hostileRecord is a job with nothing in it that can be relied on.
func hostileRecord(t *rapid.T, seq int64) Record {
	at := func(label string) time.Time { return time.Unix(rapid.Int64Range(-1e10, 1e11).Draw(t, label), 0) }
	outcomes := rapid.SampledFrom([]tgr.Conclusion{tgr.Success, tgr.Failure, tgr.TimedOut, tgr.Cancelled, tgr.Skipped, "", "nonsense"})
	r := Record{Seq: seq, Commands: map[int]Command{}, Lost: rapid.Bool().Draw(t, "lost"),
		Run: tgr.Run{ID: tgr.RunID(rapid.Int64().Draw(t, "run")), WorkflowFile: nasty().Draw(t, "file"),
			Event: tgr.Event{Name: "push", Ref: nasty().Draw(t, "ref"), SHA: nasty().Draw(t, "sha"), Tree: nasty().Draw(t, "tree"), Payload: []byte(nasty().Draw(t, "payload"))}},
		Job: tgr.Job{Kind: tgr.WorkJob, Key: nasty().Draw(t, "key"), Name: nasty().Draw(t, "name"), Total: rapid.IntRange(-1, 3).Draw(t, "total"), Started: at("started"),
			Finished: at("finished"), Conclusion: outcomes.Draw(t, "conclusion"), Needs: rapid.SliceOfN(nasty(), 0, 3).Draw(t, "needs")}}
	for range rapid.IntRange(0, 5).Draw(t, "steps") {
		st := tgr.Step{Number: rapid.IntRange(-1, 6).Draw(t, "number"), ID: nasty().Draw(t, "id"), Name: nasty().Draw(t, "step"), Started: at("begun"), Finished: at("ended"), Outcome: outcomes.Draw(t, "outcome"),
			MemoryMiB: rapid.Int64().Draw(t, "memory"), CPU: time.Duration(rapid.Int64().Draw(t, "cpu")), OutOfMemory: rapid.Bool().Draw(t, "oom")}
		if rapid.Bool().Draw(t, "exited") {
			code := rapid.Int().Draw(t, "code")
			st.ExitCode = &code
		}
		r.Job.Steps = append(r.Job.Steps, st)
		r.Commands[st.Number] = Command{Run: nasty().Draw(t, "command"), Uses: rapid.SampledFrom([]string{"", "a/b@c", "\x1e"}).Draw(t, "uses")}
		for range rapid.IntRange(0, 8).Draw(t, "lines") {
			r.Log = append(r.Log, tgr.LogLine{Step: st.Number, Text: nasty().Draw(t, "line")})
		}
	}
	return r
}

// Whatever a job says of itself: nothing breaks, what is shown is valid and bounded, and what is stored is what was there.
func TestHostileRecords(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sp, again := newSpace("o/r", false), newSpace("o/r", false)
		for i := range rapid.IntRange(1, 12).Draw(rt, "records") {
			r := hostileRecord(rt, int64(i+1))
			sp.fold(r)
			again.fold(r)
			again = reloaded(t, again, newSpace("o/r", false))
			sp.hint(r.Run, r.Job)
		}
		if diff := cmp.Diff(rowsOf(t, sp), rowsOf(t, again)); diff != "" {
			rt.Fatalf("stored and loaded it differs:\n%s", diff)
		}
		for k := range rowsOf(t, sp) {
			if !utf8.ValidString(k.key) || len(k.key) > 800 {
				rt.Fatalf("the key %q", k.key)
			}
		}
		data, err := json.Marshal(sp.insights("npm ci"))
		if err != nil || len(data) > 1<<20 {
			rt.Fatalf("insights of %d bytes: %v", len(data), err)
		}
	})
}

// With every bound reached, telling what is known is still quick, and a step's learning too.
func TestFullSpace(t *testing.T) {
	sp := newSpace("o/r", false)
	for i := range maxEdges {
		sp.join(edgeFails, "cmd"+idKey(uint64(i%maxCommands)), idKey(uint64(i%maxClusters)), false, int64(i))
	}
	for i := range maxClusters {
		sp.clusters[uint64(i)] = &cluster{Templates: []uint64{uint64(i), uint64(i + 1), uint64(i + 2)}, N: 3, Runs: []int64{1}}
	}
	for i := range maxCommands {
		sp.command("cmd" + idKey(uint64(i))).Own.add(false)
	}
	began := time.Now()
	in := sp.insights("cmd1")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("insights took %s", took)
	}
	if len(in.Failures) != maxShown {
		t.Errorf("%d failures are shown, want %d", len(in.Failures), maxShown)
	}
}
