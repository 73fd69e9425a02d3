package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/vm"
)

// TestEgressOf has settings of all repositories and of single ones.
func TestEgressOf(t *testing.T) {
	list := func(hosts ...string) vm.Egress { return vm.Egress{Mode: vm.EgressAllow, Allow: hosts} }
	for _, tt := range []struct {
		name, egress, allow string
		own                 map[string]string // of acme/app
		want                vm.Egress         // of acme/app
		others              vm.Egress
		err                 string
	}{
		{name: "the default", egress: "open", want: vm.Egress{Mode: "open"}, others: vm.Egress{Mode: "open"}},
		{name: "a list", egress: "allow", allow: "a.example, b.example\n*.c.example:22", want: list("a.example", "b.example", "*.c.example:22"), others: list("a.example", "b.example", "*.c.example:22")},
		{name: "one has a list of its own", egress: "none", own: map[string]string{"egress-allow": "a.example"}, want: list("a.example"), others: vm.Egress{Mode: "none"}},
		{name: "one has none", egress: "open", own: map[string]string{"egress": "none"}, want: vm.Egress{Mode: "none"}, others: vm.Egress{Mode: "open"}},
		{name: "one has the list of all", egress: "open", allow: "a.example", own: map[string]string{"egress": "allow"}, want: list("a.example"), others: vm.Egress{Mode: "open"}},
		{name: "a list without hosts", egress: "allow", err: "egress-allow names no host"},
		{name: "no mode", egress: "most", err: `egress "most": want none, open or allow`},
		{name: "no host", egress: "allow", allow: "https://a.example", err: "want a port"},
		{name: "one with a mistake", egress: "open", own: map[string]string{"egress": "maybe"}, err: `repositories: Acme/App: egress "maybe"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &config{values: map[string]string{"egress": tt.egress, "egress-allow": tt.allow}, origin: map[string]string{}, file: "tgr.yaml"}
			if tt.own != nil {
				c.repos = map[string]map[string]string{"Acme/App": tt.own}
			}
			of, err := egressOf(c)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			run := func(repo string) tgr.Run { return tgr.Run{Event: tgr.Event{Repo: tgr.Repo{FullName: repo}}} }
			if diff := cmp.Diff(tt.want, of(run("acme/app"))); diff != "" {
				t.Errorf("acme/app (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.others, of(run("acme/other"))); diff != "" {
				t.Errorf("others (-want +got):\n%s", diff)
			}
		})
	}
}
