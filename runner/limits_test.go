package runner_test

import (
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
)

// TestLimits are jobs that try to cost the host too much: they fail, soon, and say why.
func TestLimits(t *testing.T) {
	const self = "name: s\ndescription: d\nruns:\n  using: composite\n  steps:\n"
	for name, c := range map[string]struct{ steps, files, want string }{
		"environment names": {
			"      - run: seq 50000 | sed 's/.*/V&=/' >> $GITHUB_ENV\n      - shell: sh\n        run: echo on", "",
			"argument list too long|E2BIG|success"},
		"environment bytes": {
			strings.Repeat("      - run: head -c 1000000 /dev/zero | tr '\\0' x > v; printf 'V%s=' $RANDOM$RANDOM >> $GITHUB_ENV; cat v >> $GITHUB_ENV\n", 3), "",
			"argument list too long|E2BIG|environment is larger"},
		"path entries":   {"      - run: seq 100000 >> $GITHUB_PATH", "", "more than 1000 directories"},
		"output entries": {"      - run: seq 100000 | sed 's/$/=/' >> $GITHUB_OUTPUT", "", "success"},
		"many commands":  {"      - run: seq 50000 | sed 's/.*/::set-output name=&::&/'", "", "success"},
		"many masks":     {"      - run: seq 1000000 1020000 | sed 's/^/::add-mask::/'", "", "too many values to mask"},
		"doubling actions": {
			"      - uses: o/a@v1", "-- actions/o/a@v1/action.yml --\n" + self + strings.Repeat("    - uses: o/a@v1\n", 20),
			"more than 10000 steps|more than 10 deep"},
		"no matchers": {"      - run: echo '::add-matcher::/dev/zero'", "", "not a regular file|no file|cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t, txtar.Parse([]byte("-- workflow.yml --\non: push\njobs:\n  j:\n    runs-on: x\n    steps:\n"+c.steps+"\n"+c.files)))
			start := time.Now()
			res, err := runner.Run(s.ctx, s.config, s.job)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("it took %v", took)
			}
			got := string(res.Conclusion) + " " + res.Reason
			for want := range strings.SplitSeq(c.want, "|") {
				if strings.Contains(got, want) {
					return
				}
			}
			t.Errorf("got %q, want %q", got, c.want)
		})
	}
}

// TestStepTimeouts are all sorts of timeout-minutes of a step.
func TestStepTimeouts(t *testing.T) {
	for minutes, want := range map[string]string{
		"999999":                    "success ", // the job's own bounds it
		"1e300":                     "success ",
		"0":                         "success ", // as on GitHub: none
		"-1":                        "failure step 'Run sleep 0.2' failed: .github/workflows/ci.yml:6:9: timeout-minutes: '-1' is not a number of minutes",
		".nan":                      "failure step 'Run sleep 0.2' failed: .github/workflows/ci.yml:6:9: timeout-minutes: 'NaN' is not a number of minutes",
		".inf":                      "failure step 'Run sleep 0.2' failed: .github/workflows/ci.yml:6:9: timeout-minutes: 'Infinity' is not a number of minutes",
		"0.001":                     "failure step 'Run sleep 0.2' failed: The action 'Run sleep 0.2' has timed out after 0.001 minutes.",
		"1e-9":                      "failure step 'Run sleep 0.2' failed: The action 'Run sleep 0.2' has timed out after",
		"${{ fromJSON('0.001') }}":  "failure step 'Run sleep 0.2' failed: The action 'Run sleep 0.2' has timed out after 0.001 minutes.",
		"${{ github.none }}":        "success ",
		"${{ fromJSON('[1, 2]') }}": "failure step 'Run sleep 0.2' failed: .github/workflows/ci.yml:6:9: timeout-minutes: 'Array' is not a number of minutes",
	} {
		t.Run(minutes, func(t *testing.T) {
			t.Parallel()
			s := steps(t, "      - timeout-minutes: "+minutes+"\n        run: sleep 0.2")
			res, err := runner.Run(s.ctx, s.config, s.job)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(res.Conclusion) + " " + res.Reason; !strings.HasPrefix(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// TestLongSecret masks a secret of many lines and many bytes wherever it shows.
func TestLongSecret(t *testing.T) {
	s := steps(t, "      - env: {KEY: '${{ secrets.KEY }}'}\n        run: echo \"$KEY\"; echo \"$KEY\" | base64 -w0; echo; echo \"${KEY}\" | tr '\\n' ' '")
	key := "-----BEGIN KEY-----\n" + strings.Repeat("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\n", 40) + "-----END KEY-----"
	s.job.Secrets["KEY"] = key
	res, err := runner.Run(s.ctx, s.config, s.job)
	if err != nil || res.Conclusion != tgr.Success {
		t.Fatal(res, err)
	}
	log := s.show(res, err)
	for _, leak := range []string{"MIIEvQ", "BEGIN KEY", "LS0tLS1CRUdJTi"} {
		if strings.Contains(log, leak) {
			t.Errorf("%q shows in:\n%s", leak, log)
		}
	}
}
