"""The verbs that train, count or evaluate, one function each.

    pretrain.py  retrofit.py  usage.py  finetune.py
    evaluate.py  smf evaluate and smf ask
    data.py      smf data to-tfds

Import, export and verify are in `runs/`; demo, bench, plan and doctor are their own.
"""
