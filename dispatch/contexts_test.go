package dispatch

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// What artifacts may be kept for is what the server says, which clients cut a workflow's retention-days to.
func TestRetentionDays(t *testing.T) {
	for days, want := range map[int]string{0: "90", 7: "7", 400: "400"} {
		d := New(Config{Server: Server{Retention: days}})
		github := d.githubContext(tgr.Run{}, "")
		if github["retention_days"] != want || github["server_url"] != "https://github.com" {
			t.Errorf("%d days: %v", days, github)
		}
	}
}

// github.event.inputs has the inputs that were not sent, as text; what was sent stays as it is.
func TestPayloadOf(t *testing.T) {
	p := &workflow.Plan{Inputs: map[string]any{"Level": "low", "dry": false, "n": 1e6, "none": ""}}
	for _, tt := range []struct{ name, event, payload, want string }{
		{"none sent", "workflow_dispatch", `{"ref":"refs/heads/main","inputs":{}}`,
			`{"ref":"refs/heads/main","inputs":{"Level":"low","dry":"false","n":"1000000","none":""}}`},
		{"inputs are null", "workflow_dispatch", `{"inputs":null}`, `{"inputs":{"Level":"low","dry":"false","n":"1000000","none":""}}`},
		{"no payload", "workflow_dispatch", `null`, `{"inputs":{"Level":"low","dry":"false","n":"1000000","none":""}}`},
		{"some sent", "workflow_dispatch", `{"inputs":{"level":"high","dry":true}}`,
			`{"inputs":{"level":"high","dry":true,"n":"1000000","none":""}}`},
		{"all sent", "workflow_dispatch", `{"inputs":{"level":"high","dry":"true","n":"1","none":"x"}}`,
			`{"inputs":{"level":"high","dry":"true","n":"1","none":"x"}}`},
		{"inputs that are none", "workflow_dispatch", `{"inputs":[1]}`, `{"inputs":[1]}`},
		{"another event", "push", `{"after":"x"}`, `{"after":"x"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got, want any
			for _, v := range []struct {
				text string
				to   *any
			}{{string(payloadOf(tgr.Event{Name: tt.event, Payload: json.RawMessage(tt.payload)}, p)), &got}, {tt.want, &want}} {
				if err := json.Unmarshal([]byte(v.text), v.to); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
