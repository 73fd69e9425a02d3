package tgr_test

import (
	"testing"

	"github.com/terraphim/tgr"
)

func TestEnvironmentAllows(t *testing.T) {
	for _, tt := range []struct {
		branches, tags []string
		ref            string
		want           bool
	}{
		{nil, nil, "refs/pull/1/merge", true},
		{[]string{"main"}, nil, "refs/heads/main", true},
		{[]string{"main"}, nil, "refs/heads/maint", false},
		{[]string{"main"}, nil, "refs/tags/main", false},
		{[]string{"main"}, nil, "refs/pull/1/merge", false},
		{[]string{"release/*"}, nil, "refs/heads/release/1", true},
		{[]string{"release/*"}, nil, "refs/heads/release/1/2", false},
		{[]string{"*"}, nil, "refs/heads/release/1", false},
		{nil, []string{"v[0-9]*"}, "refs/tags/v1.2", true},
		{nil, []string{"v*"}, "refs/heads/v1", false},
	} {
		e := tgr.Environment{Branches: tt.branches, Tags: tt.tags}
		if got := e.Allows(tt.ref); got != tt.want {
			t.Errorf("branches %q, tags %q allow %s: %t", tt.branches, tt.tags, tt.ref, got)
		}
	}
}

func TestEnvironmentValidate(t *testing.T) {
	for _, e := range []tgr.Environment{{}, {Name: "a\nb"}, {Name: "a", Wait: -1}, {Name: "a", Wait: tgr.MaxWait + 1}, {Name: "a", Branches: []string{"["}},
		{Name: "a", Tags: []string{""}}, {Name: "a", Branches: make([]string, 101)}} {
		if err := e.Validate(); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("%+v: %v", e, err)
		}
	}
	ok := tgr.Environment{Name: "production", Branches: []string{"main", "release/*"}, Approval: true, Wait: tgr.MaxWait}
	if err := ok.Validate(); err != nil {
		t.Error(err)
	}
}
