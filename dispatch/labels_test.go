package dispatch

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

func TestParseLabels(t *testing.T) {
	const mib = 1 << 20
	tests := []struct {
		text string
		want Labels
		err  string // a part of it; "" is none
	}{
		{"", Labels{}, ""},
		{" a=\n\tB=cpus:2 ", Labels{"a": {}, "b": {CPUs: 2}}, ""},
		{"large=cpus:64,memory:8192,disk:20480,image:full", Labels{"large": {Image: "full", CPUs: 64, Memory: 8192 * mib, Disk: 20480 * mib}}, ""},
		{"x", nil, `label "x": expected name=`},
		{"=cpus:1", nil, "expected name="},
		{"-x=cpus:1", nil, "expected name="},
		{"x=cpus:1 X=cpus:2", nil, "label x is there twice"},
		{"x=cpus", nil, `"cpus": expected key:value`},
		{"x=cpus:", nil, `"cpus:": expected key:value`},
		{"x=gpu:1", nil, `"gpu" is not known`},
		{"x=cpus:0", nil, `cpus is "0": expected a whole number from 1 to 64`},
		{"x=memory:9999999999999999999", nil, "memory is"},
	}
	for _, tt := range tests {
		got, err := ParseLabels(tt.text)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("ParseLabels(%q) (-want +got):\n%s", tt.text, diff)
		}
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ParseLabels(%q): error %v, want %q", tt.text, err, tt.err)
		}
	}
}

func TestLabelsKind(t *testing.T) {
	l := Labels{"linux": {}, "big": {CPUs: 4, Memory: 8}, "disk": {Disk: 9, CPUs: 2}, "docker": {Image: "full"}, "alpine": {Image: "alpine"}}
	tests := []struct {
		labels string
		want   Kind
		err    string
	}{
		{"", Kind{}, ""},
		{"linux", Kind{}, ""},
		{"Linux BIG", Kind{CPUs: 4, Memory: 8}, ""},
		{"big disk", Kind{CPUs: 4, Memory: 8, Disk: 9}, ""},
		{"docker docker linux", Kind{Image: "full"}, ""},
		{"docker alpine", Kind{}, `"docker" and "alpine" are of different images`},
		{"linux macos-14", Kind{}, `no machine here has the label "macos-14": all run Linux; there are: alpine, big, disk, docker, linux. The setting labels (TGR_LABELS) adds others`},
	}
	for _, tt := range tests {
		got, err := l.Kind(strings.Fields(tt.labels))
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Kind(%q) (-want +got):\n%s", tt.labels, diff)
		}
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("Kind(%q): error %v, want %q", tt.labels, err, tt.err)
		}
		if err != nil && tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("Kind(%q): code %s, want %s", tt.labels, tgr.CodeOf(err), tgr.Invalid)
		}
	}
}

// Of a matrix only those fail that no machine can run, at once and without having waited for anything.
func TestNextRefusesUnknownLabels(t *testing.T) {
	p := compile(t, `
on: push
jobs:
  test:
    runs-on: ${{ matrix.os }}
    concurrency: {group: "g-${{ matrix.os }}", cancel-in-progress: true}
    strategy: {matrix: {os: [ubuntu-latest, macos-14]}}
    steps: [{run: make}]
  grouped: {runs-on: {group: farm, labels: ubuntu-latest}, steps: [{run: make}]}
`)
	only := limits{labels: HostedLabels()}
	jobs := rows(t, p, "test", "grouped")
	jobs = applied(t, jobs, next(p, tgr.Run{}, jobs, &workflow.Scope{}, only))
	refused := next(p, tgr.Run{}, jobs, &workflow.Scope{}, only)
	if n := len(refused.Expand) + len(refused.Skip) + len(refused.Cancel); n > 0 {
		t.Errorf("the second round changes %d jobs in other ways than to fail them", n)
	}
	var got []string
	for _, j := range jobs {
		why, _, _ := strings.Cut(refused.End[j.ID].Reason, "; there are")
		got = append(got, strings.TrimSpace(strings.Join([]string{j.Name, string(j.Status), j.Group.Name, why}, " ")))
	}
	want := []string{
		"test (ubuntu-latest) queued g-ubuntu-latest",
		`test (macos-14) pending g-macos-14 ci.yml:5:14: runs-on: no machine here has the label "macos-14": all run Linux`,
		`grouped pending  ci.yml:9:22: runs-on: no machine here has the label "farm"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
}

type namedMachines struct{ kind Kind }

func (m namedMachines) Acquire(context.Context, Spec) (*Machine, func(), error) {
	return &Machine{ID: m.kind.Image}, func() {}, nil
}

// A job that has containers gets the image with an engine, unless it has chosen its image by a label.
func TestFleetEngine(t *testing.T) {
	f := &Fleet{Labels: Labels{"plain": {}, "own": {Image: "own"}}, Engine: "full", Open: func(_ context.Context, k Kind) (Machines, error) {
		return namedMachines{k}, nil
	}}
	for _, tt := range []struct{ label, workflow, want string }{
		{"plain", "{steps: [{run: make}]}", ""},
		{"plain", "{container: debian:12, steps: [{run: make}]}", "full"},
		{"plain", "{services: {db: {image: postgres}}, steps: [{run: make}]}", "full"},
		{"plain", "{steps: [{run: make}, {uses: 'docker://alpine:3'}]}", "full"},
		{"own", "{container: debian:12, steps: [{run: make}]}", "own"},
	} {
		p := compile(t, "on: push\njobs:\n  a: "+strings.Replace(tt.workflow, "{", "{runs-on: "+tt.label+", ", 1)+"\n")
		m, _, err := f.Acquire(t.Context(), Spec{Labels: []string{tt.label}, Engine: engineFor(p.Job("a"))})
		if err != nil || m.ID != tt.want {
			t.Errorf("%s on %s: image %+v, %v; want %q", tt.workflow, tt.label, m, err, tt.want)
		}
	}
}

func TestFleetOpensEachKindOnce(t *testing.T) {
	var mu sync.Mutex
	opened := map[Kind]int{}
	f := &Fleet{Labels: Labels{"a": {Image: "a"}, "b": {Image: "b"}}, Open: func(_ context.Context, k Kind) (Machines, error) {
		mu.Lock()
		defer mu.Unlock()
		opened[k]++
		if k.Image == "b" && opened[k] == 1 {
			return nil, errors.New("not built yet")
		}
		return namedMachines{k}, nil
	}}
	if _, _, err := f.Acquire(t.Context(), Spec{Labels: []string{"b"}}); err == nil {
		t.Fatal("a kind that cannot be opened gave a machine")
	}
	var wg sync.WaitGroup
	for range 20 {
		for _, label := range []string{"a", "b"} {
			wg.Go(func() {
				m, release, err := f.Acquire(t.Context(), Spec{Labels: []string{label}})
				if err != nil || m.ID != label {
					t.Errorf("Acquire(%s) = %v, %v", label, m, err)
				}
				release()
			})
		}
	}
	wg.Wait()
	if diff := cmp.Diff(map[Kind]int{{Image: "a"}: 1, {Image: "b"}: 2}, opened); diff != "" {
		t.Errorf("opened (-want +got):\n%s", diff)
	}
	if _, _, err := f.Acquire(t.Context(), Spec{Labels: []string{"c"}}); tgr.CodeOf(err) != tgr.Invalid {
		t.Errorf("an unknown label: %v, want %s", err, tgr.Invalid)
	}
}
