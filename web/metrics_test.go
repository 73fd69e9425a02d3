package web

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	m := NewMetrics("v1")
	s := newSite(t, newMemory().fill(), func(c *Config) { c.Metrics = m })
	m.ObserveWebhook("push", "accepted")
	m.ObserveWebhook("push", "accepted")
	m.ObserveWebhook("no such event", "accepted")
	m.ObserveWebhook("ping", "no such result")
	m.ObserveJob("failure")
	m.ObserveStep("success", 50*time.Millisecond)
	m.ObservePlan(20 * time.Millisecond)
	m.ObserveVMAllocation("qemu (tcg)", 3*time.Second)
	m.ObserveVMBoot("a guest's idea", 3*time.Second)
	m.CountError("ours")
	m.SetQueueDepth(4)
	m.SetRunningJobs(2)
	m.SetReportsOutstanding(1)
	ask(t, "GET", s.url+"/api/runs/7", "")
	ask(t, "GET", s.url+"/no/such/path", "")
	ask(t, "PROPFIND", s.url+"/api/runs/7", "")
	answer, body := ask(t, "GET", s.url+"/metrics", "")
	if answer.StatusCode != 200 || !strings.HasPrefix(answer.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%d %v", answer.StatusCode, answer.Header)
	}
	for _, want := range []string{
		`tgr_webhooks_total{event="push",result="accepted"} 2`,
		`tgr_webhooks_total{event="other",result="accepted"} 1`,
		`tgr_webhooks_total{event="ping",result="other"} 1`,
		`tgr_jobs_total{result="failure"} 1`,
		`tgr_step_seconds_count{result="success"} 1`,
		`tgr_plan_seconds_count 1`,
		`tgr_vm_allocation_seconds_count{isolation="qemu (tcg)"} 1`,
		`tgr_vm_boot_seconds_sum{isolation="other"} 3`,
		`tgr_errors_total{blame="ours"} 1`,
		`tgr_errors_total{blame="user"} 0`,
		`tgr_queue_depth 4`,
		`tgr_running_jobs 2`,
		`tgr_reports_outstanding 1`,
		`tgr_http_streams 0`,
		`tgr_http_request_seconds_count{method="GET",route="/api/runs/{id}",status="200"} 1`,
		`tgr_http_request_seconds_count{method="GET",route="other",status="404"} 1`,
		`tgr_http_request_seconds_count{method="other",route="other",status="405"} 1`,
		`tgr_build_info{version="v1"} 1`,
		`go_goroutines`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "tgr_") && !strings.Contains(line, "_bucket") {
				t.Log(line)
			}
		}
	}
}

func TestMetricsHaveBoundedLabels(t *testing.T) {
	m := NewMetrics("v1")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 500 {
				junk := strconv.Itoa(g*1000 + n)
				m.ObserveWebhook(junk, junk)
				m.ObserveJob(junk)
				m.ObserveStep(junk, 0)
				m.ObserveVMAllocation(junk, 0)
				m.ObserveVMBoot(junk, 0)
				m.CountError(junk)
				m.observeHTTP("", junk, 200, 0)
			}
		})
	}
	wg.Wait()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if n := len(f.GetMetric()); strings.HasPrefix(f.GetName(), "tgr_") && n > 4 {
			t.Errorf("%s has %d series", f.GetName(), n)
		}
	}
}
