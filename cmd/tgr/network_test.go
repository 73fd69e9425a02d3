package main

import (
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

// TestEgressOf has settings of all repositories and of single ones.
func TestEgressOf(t *testing.T) {
	usual := vm.NetLimits{Bandwidth: 125_000_000, Connections: 4096, NewPerSecond: 500}
	if usual != network.DefaultLimits() {
		t.Errorf("the settings' defaults are %+v, and the network's %+v", usual, network.DefaultLimits())
	}
	mode := func(m vm.EgressMode, hosts ...string) vm.Egress {
		return vm.Egress{Mode: m, Allow: hosts, Limits: usual}
	}
	slow := mode("open")
	slow.Limits = vm.NetLimits{Bandwidth: 1_250_000, Connections: 4096, NewPerSecond: 7}
	slowest := slow
	slowest.Limits.Bandwidth, slowest.Limits.Connections = 125_000, 20
	for _, tt := range []struct {
		name, egress, allow string
		set                 map[string]string // beside these two
		own                 map[string]string // of acme/app
		want                vm.Egress         // of acme/app
		others              vm.Egress
		err                 string
	}{
		{name: "the default", egress: "open", want: mode("open"), others: mode("open")},
		{name: "a list", egress: "allow", allow: "a.example, b.example\n*.c.example:22", want: mode("allow", "a.example", "b.example", "*.c.example:22"), others: mode("allow", "a.example", "b.example", "*.c.example:22")},
		{name: "one has a list of its own", egress: "none", own: map[string]string{"egress-allow": "a.example"}, want: mode("allow", "a.example"), others: mode("none")},
		{name: "one has none", egress: "open", own: map[string]string{"egress": "none"}, want: mode("none"), others: mode("open")},
		{name: "one has the list of all", egress: "open", allow: "a.example", own: map[string]string{"egress": "allow"}, want: mode("allow", "a.example"), others: mode("open")},
		{name: "limits", egress: "open", set: map[string]string{"egress-rate": "10", "egress-new-connections": "7"}, want: slow, others: slow},
		{name: "one has limits of its own", egress: "open", set: map[string]string{"egress-rate": "10", "egress-new-connections": "7"}, own: map[string]string{"egress-rate": "1", "egress-connections": "20"}, want: slowest, others: slow},
		{name: "a list without hosts", egress: "allow", err: "egress-allow names no host"},
		{name: "no mode", egress: "most", err: `egress "most": want none, open or allow`},
		{name: "no host", egress: "allow", allow: "https://a.example", err: "want a port"},
		{name: "no limit", egress: "open", set: map[string]string{"egress-rate": "0"}, err: `egress-rate (from tgr.yaml) is "0": expected a whole number from 1 to 100000`},
		{name: "one with a mistake", egress: "open", own: map[string]string{"egress": "maybe"}, err: `repositories: Acme/App: egress "maybe"`},
		{name: "one with a mistaken limit", egress: "open", own: map[string]string{"egress-connections": "few"}, err: `repositories: Acme/App: egress-connections is "few": expected a whole number`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &config{values: map[string]string{}, origin: map[string]string{"egress-rate": "tgr.yaml"}, file: "tgr.yaml"}
			for _, s := range settings() {
				c.values[s.Key] = s.Default
			}
			c.values["egress"], c.values["egress-allow"] = tt.egress, tt.allow
			maps.Copy(c.values, tt.set)
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
