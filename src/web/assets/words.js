// Languages. Text in the page and in scripts is English; here is what it is in others. What the agent
// says in words of its own is matched by pattern. Unknown text stays as it is.
"use strict";

const ZH = {
  "Find a machine": "查找设备", "Machines": "设备", "Alarms": "报警", "Data path": "数据通路", "Models": "模型", "Overview": "总览",
  "No alarms.": "没有报警。", "Close": "关闭", "Main contributors": "贡献最大的信号", "Verdict": "判定", "Signals": "信号",
  "Signal": "信号", "Value": "数值", "State": "状态", "Sign in": "登录", "Access token of this agent": "本网关的访问令牌",
  "Acknowledge": "确认", "Shelve": "搁置", "Take back": "取消搁置", "Reset": "复位", "Out of service": "停用", "Back in service": "恢复使用",
  "Why, and what to check": "原因及检查建议", "Check first": "首先检查", "Put aside": "已搁置或抑制", "Over": "已结束",
  "Active": "活动", "Active, acknowledged": "活动，已确认", "Over, not acknowledged": "已结束，未确认", "Latched": "锁存，未确认",
  "Latched, acknowledged": "锁存，已确认", "Shelved": "已搁置", "Suppressed": "已抑制",
  "normal": "正常", "attention": "需注意", "alarm": "报警", "not judged": "未判定", "off": "停机", "all normal": "全部正常", "not live": "非实时",
  "all off": "全部停机", "no machines": "无设备", "active": "个活动", "none active": "无活动报警", "critical": "紧急", "high": "高", "medium": "中", "low": "低",
  "second opinion": "第二意见", "an anomaly": "异常", "no anomaly": "无异常", "severity": "严重度", "since": "自", "seen by": "确认人", "until": "至", "left": "剩余", "by": "操作人", "first out": "首发", "chattering": "频繁抖动",
  "repeated": "重复", "Your name": "您的姓名", "For how long": "搁置多久", "minutes": "分钟", "hours": "小时", "Comment": "备注", "Cancel": "取消",
  "Shelve this alarm": "搁置此报警", "It comes back by itself.": "到时自动恢复。", "Critical alarms are not shelved.": "紧急报警不可搁置。",
  "now": "当前", "was": "报警时", "unusual beside the others, or in how it moves": "与其他信号不一致，或变化方式异常", "normal range": "正常范围", "share": "占比", "model": "模型", "records waiting": "待发送记录", "records sent": "已发送记录",
  "readings per second": "每秒读数", "readings": "读数", "no verdict yet": "尚无判定", "reason": "结论", "score": "分数", "p-value": "p 值",
  "limit": "限值", "health": "健康度", "useful life left": "剩余寿命", "class": "类别", "window ends": "窗口结束",
  "over the limit": "超过限值", "alarms, audit": "报警、审计", "verdicts": "判定", "Main contributors now": "当前贡献最大的信号", "good": "良好", "not heard yet": "尚未收到", "up": "正常", "down": "故障", "degraded": "降级",
  "starting": "启动中", "has not worked yet": "尚未正常工作", "No machine has been heard yet.": "尚未收到任何设备的数据。", "No machine of that name.": "没有此名称的设备。",
  "Sources": "数据源", "Sinks": "发送端", "Store": "存储", "Stages and other parts": "各环节", "What was lost or left out": "丢失或未采用的数据",
  "Nothing was lost or left out since the start.": "启动以来没有任何丢失。", "last good": "上次正常", "ago": "前", "just now": "刚刚", "Waiting": "等待中", "Name": "名称",
  "Version": "版本", "Windows judged": "已判定窗口", "Failures": "失败", "Time per batch": "每批耗时", "Reference scores": "参考分数", "Channels": "通道",
  "Digest": "摘要", "Stage": "阶段", "What": "项目", "Reason": "原因", "Count": "数量", "Part": "部分", "Detail": "说明", "Health": "状况", "Readings": "读数",
  "Requests": "请求", "Lane": "队列", "Records": "记录", "On disk": "磁盘占用", "Oldest": "最早", "Dropped": "已丢弃", "verdict": "判定", "journal": "日志", "Nothing is sent anywhere.": "没有配置发送端。", "No models are loaded.": "没有加载模型。", "Candidate": "候选版本", "Drift": "漂移", "shadow": "影子运行", "canary": "金丝雀", "baking": "观察期", "refused": "已拒绝", "rolled_back": "已回退", "no reference": "无参考", "alarms a day": "每天报警次数", "promised": "承诺值", "windows": "个窗口", "anomalies": "异常窗口", "in use": "在用", "readings not used": "未采用的读数", "payloads set aside": "无法解析而搁置的消息",
  "records dropped": "丢弃的记录", "dead letters": "死信", "dashboard messages left out": "未发布的看板消息", "model runs that failed": "失败的模型运行",
  "announced together": "合并通知", "Language": "语言", "as of": "截至", "connecting": "连接中", "duplicate": "重复", "late": "迟到", "future": "时间超前",
  "no_machine": "无对应设备", "bad": "坏值", "stale": "过期", "uncertain": "不确定", "disk": "磁盘", "waiting": "等待", "sent": "已发送", "ready": "就绪", "running for": "已运行",
  "Show only": "只显示", "Every machine's state": "所有设备的状态", "Pages of machines": "设备分页", "Previous": "上一页", "Next": "下一页", "Bus load": "总线负载", "Acknowledge all shown": "确认所列全部报警", "before this page was opened": "打开本页之前",
  "Connection lost. What is shown is not live. Last heard:": "连接中断。所示内容不是实时数据。最后收到：",
  "Health over time": "健康度变化", "To the alarms": "跳到报警", "This machine has not been heard.": "尚未收到此设备的数据。", "Pages": "页面",
  "Take out of service": "停用此设备", "Normal": "正常范围",
  "The last signals": "当前信号", "Window": "窗口", "and": "和", "dashboard": "看板",
};
const PATTERNS_ZH = [
  [/^unusual behaviour, mostly (.*)$/, "行为异常，主要为 $1"], [/^(.*): unusual behaviour, mostly (.*)$/, "$1：行为异常，主要为 $2"],
  [/^over, not acknowledged: (.*)$/, m => "已结束，未确认：" + t(m[1])], [/^warming up$/, "预热中"], [/^a signal is not usable$/, "有信号不可用"],
  [/^the model cannot be run$/, "模型无法运行"], [/^no model is bound$/, "未绑定模型"], [/^not judged yet$/, "尚未判定"],
  [/^(.*) is (stale|bad|uncertain): nothing can be judged$/, m => m[1] + " " + t(m[2]) + "：无法判定"],
  [/^(?:(.*); )?the engine has not been heard since (\S+)$/, m => (m[1] ? t(m[1]) + "；" : "") + "自 " + clock(m[2]) + " 起未收到引擎的消息"], [/^not heard since (.*)$/, "自 $1 起无数据"], [/^shelved until (\S+) \((.*?)\): (.*)$/, m => "已搁置至 " + clock(m[1]) + "（" + m[2] + "）：" + t(m[3])],
  [/^out of service \((.*?)\): (.*)$/, m => "已停用（" + m[1] + "）：" + t(m[2])], [/^suppressed: (.*)$/, m => "已抑制：" + t(m[1])],
  [/^(\d+) in alarm$/, "$1 台报警"], [/^(\d+) need attention$/, "$1 台需注意"], [/^(\d+) not judged$/, "$1 台未判定"], [/^live, last heard (.*)$/, "实时，最后收到 $1"], [/^not live, as of (.*)$/, "非实时，截至 $1"], [/^agent (.*)$/, m => "网关" + t(m[1])],
  [/^unchanged for (.*)$/, "$1未变化"], [/^not heard for ([^:]*)$/, "$1未收到"], [/^(.*) · expected once in (.*)$/, "$1 · 预期每 $2 个窗口一次"],
  [/^Flood of alarms: (\d+) so far, the first from (.*)$/, "报警泛滥：至今 $1 个，首个来自 $2"], [/^and (\d+) more; type.*$/, "还有 $1 台；输入名称的一部分来查找"],
  [/^(\d+) % of limit$/, "限值的 $1 %"], [/^and (\d+) more alarms$/, "还有 $1 个报警"], [/^(.*) finds an anomaly where it was uncertain here(.*)$/, "$1 发现异常，本机模型不确定$2"], [/^(\d+) active$/, "$1 个活动"], [/^no anomaly detected$/, "未发现异常"], [/^anomaly detected$/, "发现异常"], [/^machine off$/, "停机"], [/^input bad$/, "输入无效"],
];
const EN = [[/^((?:.*; )?the engine has not been heard since )(\S+)$/, m => m[1] + clock(m[2])], [/^shelved until (\S+) (.*)$/, m => "shelved until " + clock(m[1]) + " " + m[2]], [/^not heard since (\S+)$/, m => "not heard since " + clock(m[1])]];

let language = "en";
try { language = localStorage.getItem("andon-language") || (navigator.language.startsWith("zh") ? "zh" : "en"); } catch { /* private windows keep nothing */ }

// Text in the language chosen.
function t(text) {
  if (language === "zh" && Object.hasOwn(ZH, text)) return ZH[text];
  for (const [pattern, to] of language === "zh" ? PATTERNS_ZH : EN) {
    const m = pattern.exec(text);
    if (m) return typeof to === "string" ? text.replace(pattern, to) : to(m);
  }
  return text;
}
// Puts all fixed text of the page into the language chosen; what it was in English stays beside it.
function translatePage() {
  document.documentElement.lang = language;
  for (const e of document.querySelectorAll("[data-t]")) {
    if (!e.dataset.t) e.dataset.t = e.textContent.trim();
    e.textContent = t(e.dataset.t);
  }
  for (const e of document.querySelectorAll("[data-t-label]")) {
    if (!e.dataset.tLabel) e.dataset.tLabel = e.getAttribute("aria-label");
    e.setAttribute("aria-label", t(e.dataset.tLabel));
    if (e.hasAttribute("placeholder")) e.setAttribute("placeholder", t(e.dataset.tLabel));
  }
}
function setLanguage(to) {
  language = to;
  try { localStorage.setItem("andon-language", to); } catch { /* as above */ }
  translatePage();
}
