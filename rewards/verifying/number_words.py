# ruff: noqa: E501 - tables of words
"""Numbers and units in words, in several languages → digits and signs: "minus twenty" → "-20", "5厘米" → "5 cm"."""

from __future__ import annotations

import re
from fractions import Fraction

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: number for number, word in enumerate(_ONES)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_LARGE = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100,
}  # fmt: skip
_OTHER_LANGUAGES = {
    # German, French, Spanish, Portuguese, Italian: what counts of things need
    "eins": 1, "zwei": 2, "drei": 3, "vier": 4, "fünf": 5, "sechs": 6, "sieben": 7, "acht": 8, "neun": 9, "zehn": 10,
    "deux": 2, "trois": 3, "quatre": 4, "cinq": 5, "sept": 7, "huit": 8, "neuf": 9, "dix": 10,
    "dos": 2, "tres": 3, "cuatro": 4, "cinco": 5, "seis": 6, "siete": 7, "ocho": 8, "nueve": 9, "diez": 10,
    "dois": 2, "três": 3, "quatro": 4, "sete": 7, "oito": 8, "nove": 9, "dez": 10,
    "due": 2, "quattro": 4, "cinque": 5, "sei": 6, "otto": 8, "dieci": 10,
}  # fmt: skip
_PART = "|".join([*_PARTS, *(f"{word}s" for word in _PARTS if word not in ("half", "halves"))])
_WORD = "|".join(sorted([*_SMALL, *_LARGE], key=len, reverse=True))
NUMBER_WORDS = re.compile(
    rf"(?<![\w-])(?:(?:minus|negative)\s+)?(?:"
    rf"(?P<number>(?:an? (?={'|'.join(_LARGE)})"
    rf"|(?={'|'.join(_SMALL)}))(?:(?:{_WORD})(?:[\s-]+(?:and[\s-]+)?(?={_WORD}))?){{1,12}})(?![\w])"
    rf"(?:[\s-]+(?:and\s+)?(?:(?P<top>an?|{_WORD})[\s-]+)?(?P<part>{_PART})(?![\w]))?"
    rf"|(?:an?\s+)?(?P<half>half|quarter|third)(?![\w])|(?P<other>{'|'.join(_OTHER_LANGUAGES)})(?![\w])"
    rf"|(?:an?\s+)?(?P<dozen>dozen)(?!\w))",
    re.IGNORECASE,
)
_CHINESE_DIGITS = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_POWERS = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile(
    r"(?<![\u4e00-\u9fff])[零〇一二三四五六七八九两十百千]{1,8}(?=$|[\s个只条本人名件道元岁厘米分度时天次台辆棵颗块张支种])"
)

_UNITS = {
    "平方厘米": "cm^2", "平方千米": "km^2", "平方分米": "dm^2", "平方毫米": "mm^2", "平方米": "m^2", "平方公里": "km^2",
    "立方厘米": "cm^3", "立方分米": "dm^3", "立方米": "m^3", "千米/时": "km/h", "千米每小时": "km/h", "公里/小时": "km/h",
    "千米/小时": "km/h", "米/秒": "m/s", "米每秒": "m/s",
    "厘米": "cm", "毫米": "mm", "分米": "dm", "千米": "km", "公里": "km", "米": "m", "公斤": "kg", "千克": "kg", "毫克": "mg",
    "克": "g", "吨": "tonne", "毫升": "mL", "升": "L", "小时": "h", "分钟": "min", "秒钟": "s", "秒": "s", "分鐘": "min",
    "摄氏度": "°C", "度": "°", "天": "day", "美元": "$", "欧元": "€", "英镑": "£", "人民币": "CNY", "日元": "JPY", "円": "JPY",
    "元": "CNY", "块钱": "CNY", "圆": "CNY", "パーセント": "%", "センチメートル": "cm", "センチ": "cm", "メートル": "m",
    "キロメートル": "km", "キログラム": "kg", "グラム": "g", "リットル": "L", "時間": "h", "分間": "min", "도": "°", "원": "₩",
    "센티미터": "cm", "미터": "m", "퍼센트": "%",
}  # fmt: skip
_UNIT = re.compile(r"(?<=[\d\s})])\s*(" + "|".join(sorted(_UNITS, key=len, reverse=True)) + r")(?![\u4e00-\u9fff])")
_SCALES = {"百万": 10**6, "千万": 10**7, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "만": 10**4, "억": 10**8}
SCALE = re.compile(r"(?<=\d)\s*(百万|千万|万|萬|亿|億|만|억)")
_ENGLISH_UNITS = (
    (re.compile(r"\bper\s*cent\b|\bpct\b\.?|\bpercentage points?\b|\bpercentage\b|\bpercents?\b|\bprozent\b|\bpor ciento\b|\bpour cent\b", re.I), "%"),
    (re.compile(r"\bdegrees? (?:celsius|centigrade)\b|(?<=\d)\s?°\s?c\b|\bdeg(?:rees?)? c\b|℃", re.I), "°C"),
    (re.compile(r"\bdegrees? fahrenheit\b|(?<=\d)\s?°\s?f\b|℉", re.I), "°F"),
    (re.compile(r"\bkmph\b|\bkm/hr\b|\bkph\b|\bkilomet(?:er|re)s? (?:per|an) hour\b", re.I), "km/h"),
    (re.compile(r"\bmph\b|\bmiles? (?:per|an) hour\b", re.I), "mile/h"),
    (re.compile(r"\bmet(?:er|re)s? per second\b|\bmps\b", re.I), "m/s"),
    (re.compile(r"\b(?:us |u\.s\. |american )?dollars?\b|\bUSD\b|\bUS\$|\bbucks?\b", re.I), "$"),
    (re.compile(r"\beuros?\b|\bEUR\b", re.I), "€"),
    (re.compile(r"\bGBP\b|\bpounds? sterling\b", re.I), "£"),
    (re.compile(r"\b(?:chinese )?yuan\b|\bRMB\b|\bCNY\b", re.I), "CNY"),
    (re.compile(r"\b(?:japanese )?yen\b|\bJPY\b", re.I), "JPY"),
    (re.compile(r"\brupees?\b|\bRs\.?(?=\s?\d)|\bINR\b", re.I), "₹"),
    (re.compile(r"(?<=\d)\s*(?:cents?|¢)(?!\w)|(?<=\d)¢", re.I), " cents"),
)  # fmt: skip


def digits_for_words(text: str) -> str:
    """Number words as digits, in place.

    Example:
        >>> digits_for_words("negative twenty-three"), digits_for_words("one half"), digits_for_words("two and a half")
        ('-23', '1/2', '5/2')
        >>> digits_for_words("three hundred and five apples"), digits_for_words("十二个")
        ('305 apples', '12个')
    """
    if not any(sign.isalpha() for sign in text):
        return text
    text = NUMBER_WORDS.sub(_digits, text)
    text = re.sub(r"\b(?:negative|minus)\s+(?=[\d.])", "-", text, flags=re.IGNORECASE)
    return _CHINESE.sub(lambda match: str(_chinese(match[0])), text)


def unit_signs(text: str) -> str:
    """Unit words that the unit library does not know as signs; Chinese, Japanese and Korean scales as factors.

    Example:
        >>> unit_signs("5厘米"), unit_signs("28 percentage points"), unit_signs("4万")
        ('5 cm', '28 %', '40000')
    """
    if "万" in text or "亿" in text or "億" in text or "萬" in text or "만" in text or "억" in text:
        text = re.sub(r"(\d[\d,]{0,20}(?:\.\d{1,12})?)\s*(百万|千万|万|萬|亿|億|만|억)", _scaled, text)
    if not text.isascii():
        text = _UNIT.sub(lambda match: f" {_UNITS[match[1]]}", text)
    for pattern, sign in _ENGLISH_UNITS:
        text = pattern.sub(sign, text)
    return text


def _scaled(match: re.Match[str]) -> str:
    value = Fraction(match[1].replace(",", "")) * _SCALES[match[2]]
    return str(value.numerator) if value.denominator == 1 else str(float(value))


def _digits(match: re.Match[str]) -> str:
    sign = "-" if re.match(r"minus|negative", match[0], re.IGNORECASE) else ""
    if match["half"]:
        return f"{sign}1/{_PARTS[match['half'].lower()]}"
    if match["other"]:
        return f"{sign}{_OTHER_LANGUAGES[match['other'].lower()]}"
    if match["dozen"]:
        return f"{sign}12"
    words = re.findall(r"[a-z]+", match["number"].lower())
    value = _value([word for word in words if word not in ("and", "a", "an")])
    if not match["part"]:
        return f"{sign}{value}"
    below = _PARTS.get(match["part"].lower()) or _PARTS[match["part"].lower()[:-1]]
    if match["top"]:  # "two and a half"
        top = _SMALL.get(match["top"].lower(), 1)
        return f"{sign}{value * below + top}/{below}"
    return f"{sign}{value}/{below}"


def _value(words: list[str]) -> int:
    total, current = 0, 0
    for word in words:
        if word in _SMALL:
            current += _SMALL[word]
        elif word == "hundred":
            current = max(current, 1) * 100
        else:
            total, current = total + max(current, 1) * _LARGE[word], 0
    return total + current


def _chinese(text: str) -> int:
    total, digit = 0, 0
    if not any(sign in _CHINESE_POWERS for sign in text):
        return int("".join(str(_CHINESE_DIGITS[sign]) for sign in text))
    for sign in text:
        if sign in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[sign]
        else:
            total, digit = total + max(digit, 1) * _CHINESE_POWERS[sign], 0
    return total + digit
